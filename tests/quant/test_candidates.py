"""What candidates are called and made of, and what is refused before any work is done."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dasheng_edge.quant import candidates
from dasheng_edge.quant.bundle_quant import QuantizeOptions
from dasheng_edge.quant.candidates import (
    Spec,
    check_candidate,
    check_same_model,
    make_candidate,
    origin_of,
    parse_spec,
    parse_specs,
)
from dasheng_edge.quant.recipes import RECIPES, Recipe
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.manifest import MANIFEST, QuantizationFacts, VocabularyFacts
from dasheng_edge.runtime.errors import ClipsError, QuantizeError
from dasheng_edge.runtime.progress import NoProgress
from tests.fixtures.places import SMALLEST_BUNDLE
from tests.runtime.clips.test_clips import write_wave

MICRO = Path(__file__).resolve().parents[2] / "build" / "micro"
needs_micro = pytest.mark.skipif(not MICRO.is_dir(), reason="make build/micro makes it")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with bundles in it, as far as names are concerned."""
    for folder in ("x1/bundle", "x2/bundle", "reference", "y/balanced"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / MANIFEST).write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*texts: str) -> list[str]:
    return [spec.name for spec in parse_specs(texts, "reference")]


@needs_micro
def test_candidates_are_parsed() -> None:
    assert parse_spec("balanced").recipe == RECIPES["balanced"]
    assert parse_spec("INT8/q4_k_m").recipe == Recipe("int8", "Q4_K_M", "f16")
    spec = parse_spec("int8/Q4_K_M/q8_0+imatrix=folder/text.gguf")
    assert (spec.name, spec.imatrix) == ("int8/Q4_K_M/q8_0+imatrix=text", Path("folder/text.gguf"))
    assert spec.recipe == Recipe("int8", "Q4_K_M", "q8_0", imatrix=True)
    assert parse_spec(str(MICRO)).bundle == MICRO
    for text in ("nothing", "int8", "int8/Q4_K_M/f16/x", "int8/Q4_K_M+imatrixes"):
        with pytest.raises(ClipsError, match=r"is no candidate; expected the folder of a bundle"):
            parse_spec(text)
    with pytest.raises(ClipsError, match=r"'Q4' is not known; did you mean Q4_"):
        parse_spec("int8/Q4")


def test_names_are_short_where_that_is_enough(here: Path) -> None:
    assert names("x1/bundle", "balanced", "int8/Q4_K_M+imatrix=a/text.gguf") == [
        "bundle",
        "balanced",
        "int8/Q4_K_M+imatrix=text",
    ]


def test_names_that_several_have_are_as_typed(here: Path) -> None:
    assert names("x1/bundle", "x2/bundle", "fp32/F16") == ["x1/bundle", "x2/bundle", "fp32/F16"]
    assert names("y/balanced", "balanced") == ["y/balanced", "balanced"]
    matrices = ("int8/Q4_K_M+imatrix=a/text.gguf", "int8/Q4_K_M+imatrix=b/text.gguf")
    assert names(*matrices) == list(matrices)


def test_no_candidate_has_the_references_name(here: Path) -> None:
    assert names("reference") == ["bundle reference"]
    (here / "reference" / MANIFEST).unlink()
    (spec,) = parse_specs(["reference"], "reference")
    assert (spec.name, spec.recipe) == ("recipe reference", RECIPES["reference"])


@pytest.mark.parametrize(
    "texts", [("balanced", "balanced"), ("x1/bundle", "x1/bundle"), ("x1/bundle", "./x1/bundle"), ("reference",) * 2]
)
def test_what_is_there_twice(here: Path, texts: tuple[str, ...]) -> None:
    with pytest.raises(ClipsError, match=r"is there twice; name each once"):
        parse_specs(texts, "reference")


def test_names_that_are_no_utf8_can_be_written(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (folder / MANIFEST).write_text("{}")
    assert parse_spec(str(folder)).name == "\\xe9"
    assert parse_spec("fp32/Q4_K_M+imatrix=" + os.fsdecode(b"\xe9.gguf")).name == "fp32/Q4_K_M+imatrix=\\xe9"


@pytest.mark.parametrize("text", ["./smal", "x1/bundel", "no/such/folder", "int9/Q4_K_M"])
def test_a_folder_that_is_not_there_is_no_candidate(here: Path, text: str) -> None:
    said = r"is no candidate; expected the folder of a bundle, one of reference, .* or ENCODER/DECODER, .*one of fp32, "
    with pytest.raises(ClipsError, match=said):
        parse_spec(text)


def test_a_matrix_without_a_name() -> None:
    with pytest.raises(ClipsError, match=r"there is no file behind '\+imatrix='; name an importance matrix"):
        parse_spec("int8/Q4_K_M+imatrix=")


@needs_micro
def test_a_matrix_that_is_not_there_is_refused_first(tmp_path: Path) -> None:
    origin = origin_of(Bundle.open(MICRO), tmp_path / "made", None, 1)
    spec = parse_spec(f"int8/Q4_K_M+imatrix={tmp_path / 'x.gguf'}")
    with pytest.raises(ClipsError, match=r"there is no importance matrix .*x\.gguf"):
        check_candidate(spec, origin)
    (tmp_path / "x.gguf").write_text("nothing")
    with pytest.raises(ClipsError, match=r"x\.gguf is not an importance matrix"):
        check_candidate(spec, origin)


@needs_micro
@pytest.mark.parametrize(
    ("key", "value"), [("prompt", "What?"), ("system", "Be short."), ("audio_first", False), ("audio_token", "<x>")]
)
def test_another_question_is_refused(tmp_path: Path, key: str, value: object) -> None:
    reference = Bundle.open(MICRO)
    shutil.copytree(MICRO, tmp_path / "other")
    manifest = json.loads((MICRO / MANIFEST).read_text("utf-8"))
    manifest["prompt"] |= {key: value, "notes": ["what is a note only may differ"]}
    (tmp_path / "other" / MANIFEST).write_text(json.dumps(manifest))
    said = rf"other asks another question than .*micro: {key} in its manifest is .*, expected .*; export or quantize"
    with pytest.raises(ClipsError, match=said):
        check_same_model(reference, Bundle.open(tmp_path / "other"))
    with pytest.raises(ClipsError, match=said):
        check_candidate(Spec("other", tmp_path / "other"), origin_of(reference, tmp_path / "made", None, 1))
    check_same_model(reference, reference)


@pytest.mark.parametrize("corpora", [{}, {"a.txt": "0" * 64}])
def test_bundles_with_other_tokens_are_not_compared(corpora: dict[str, str]) -> None:
    """Fewer of them, or as many that were chosen by another text."""
    reference = Bundle.open(SMALLEST_BUNDLE)
    facts, total = reference.decoder_facts, reference.decoder_facts.vocab_size
    cut = [VocabularyFacts(tokens_before=total, corpora=names) for names in ({}, corpora)]
    bundles = [
        replace(
            reference,
            manifest=reference.manifest.model_copy(
                update={
                    "decoder": facts.model_copy(update={"vocab_size": size}),
                    "quantization": QuantizationFacts(source_sha256="0" * 64, vocabulary=vocabulary),
                }
            ),
        )
        for size, vocabulary in zip((total - 64, total - 64 * (2 if not corpora else 1)), cut, strict=True)
    ]
    check_same_model(bundles[0], bundles[0])
    for one, other in ((bundles[0], bundles[1]), (reference, bundles[0])):
        with pytest.raises(
            ClipsError, match=r"have other tokens, of which .* are left.*make both with the same --vocab"
        ):
            check_same_model(one, other)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which bundles were made, by a stand-in for the quantizer that copies."""
    found: list[Path] = []

    def quantize(options: QuantizeOptions, _: object) -> Any:
        found.append(options.out)
        shutil.copytree(MICRO, options.out, dirs_exist_ok=True)
        return SimpleNamespace(warnings=("these clips are few", f"{len(found)} made"))

    monkeypatch.setattr(candidates, "quantize_bundle", quantize)
    return found


@needs_micro
def test_warnings_are_collected_and_kept(tmp_path: Path, made: list[Path]) -> None:
    write_wave(tmp_path / "clip.wav")
    reference = Bundle.open(MICRO)

    def warned() -> list[str]:
        origin = origin_of(reference, tmp_path / "made", tmp_path / "clip.wav", 1)
        made = [make_candidate(parse_spec(text), origin, NoProgress()) for text in ("int8/F16", "fp32/Q8_0")]
        return list(dict.fromkeys(warning for _, warnings in made for warning in warnings))

    want = ["these clips are few", "1 made", "2 made"]
    assert warned() == want
    assert warned() == want  # nothing was made
    assert len(made) == 2
    (made[0].parent / f"{made[0].name}.json").write_text('["these')  # a run was killed
    assert warned() == ["these clips are few", "3 made", "2 made"]
    assert made[2] == made[0]


@needs_micro
def test_an_upgrade_makes_candidates_anew(tmp_path: Path, made: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    origin = origin_of(Bundle.open(MICRO), tmp_path / "made", None, 1)
    spec = Spec("x", None, Recipe("int8", "F16", "f16"))
    make_candidate(spec, origin, NoProgress())
    make_candidate(spec, origin, NoProgress())
    assert len(made) == 1
    monkeypatch.setattr(metadata, "version", lambda _: "99.0")
    make_candidate(spec, origin, NoProgress())
    assert len(set(made)) == 2


@needs_micro
@pytest.mark.parametrize("text", ["fp32/IQ3_XXS+imatrix", "fp32/IQ2_XXS", "int8/Q4_K_M+imatrix", "tiny", "mixed/F16"])
def test_what_is_measured_on_the_way_is_not_refused(tmp_path: Path, text: str) -> None:
    write_wave(tmp_path / "clip.wav", 1.0)
    check_candidate(parse_spec(text), origin_of(Bundle.open(MICRO), tmp_path / "made", tmp_path / "clip.wav", 1))
    with pytest.raises(ClipsError, match="is measured on clips; pass --calibrate CLIPS"):
        check_candidate(parse_spec(text), origin_of(Bundle.open(MICRO), tmp_path / "made", None, 1))


@needs_micro
def test_a_type_that_takes_no_importance_matrix(tmp_path: Path) -> None:
    write_wave(tmp_path / "clip.wav", 1.0)
    origin = origin_of(Bundle.open(MICRO), tmp_path / "made", tmp_path / "clip.wav", 1)
    with pytest.raises(ClipsError, match=r"F16 is stored without an importance matrix; leave \+imatrix out"):
        check_candidate(parse_spec("int8/F16+imatrix"), origin)


@needs_micro
@pytest.mark.parametrize(
    ("part", "precision", "text", "fix"),
    [
        ("decoder", "Q4_K_M", "balanced", "export CHECKPOINT --decoder F16"),
        ("encoder", "int8", "int4-block/F16", "fp32"),
    ],
)
def test_what_is_quantized_already_is_refused_with_its_candidate(
    tmp_path: Path, part: str, precision: str, text: str, fix: str
) -> None:
    reference = Bundle.open(MICRO)
    facts = getattr(reference.manifest, part).model_copy(update={"precision": precision})
    stored = replace(reference, manifest=reference.manifest.model_copy(update={part: facts}))
    said = rf"candidate {text} cannot be made of the reference: the {part} .* is {precision} already.*{fix}"
    with pytest.raises(QuantizeError, match=said):
        check_candidate(parse_spec(text), origin_of(stored, tmp_path / "made", None, 1))
