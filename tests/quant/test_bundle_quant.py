"""Bundles from bundles: every recipe, what is refused, and that nothing half-made stays."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dasheng_edge.quant import bundle_quant, tolerances
from dasheng_edge.quant.bundle_quant import QuantizeOptions, quantize_bundle, quantize_options
from dasheng_edge.quant.decoder.gguf_file import gguf_tensors
from dasheng_edge.quant.decoder.imatrix_file import Imatrix, read_imatrix, write_imatrix
from dasheng_edge.quant.decoder.quantize import parse_tensor_types
from dasheng_edge.quant.decoder.types import DecoderOptions
from dasheng_edge.quant.encoder.graphs import load_graph, save_graph
from dasheng_edge.quant.encoder.quantize import EncoderOptions
from dasheng_edge.quant.recipes import RECIPES, Recipe
from dasheng_edge.quant.vocabulary.corpus import VocabularyOptions
from dasheng_edge.runtime.bundle.bundle import DECODER, ENCODER, GOLDEN_FLAT, MODEL_CARD, Bundle, sha256_of
from dasheng_edge.runtime.bundle.manifest import SCHEMA_VERSION, FileFacts
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.cli.app import build_app
from dasheng_edge.runtime.engine_options import EngineOptions, EngineSettings
from dasheng_edge.runtime.errors import BundleKindError, OutputExistsError, OutputWriteError, QuantizeError
from dasheng_edge.runtime.machine.installation import install_line
from dasheng_edge.runtime.verify import verify_bundle
from tests.fixtures.bundle_kinds import write_encoder_bundle

REPOSITORY = Path(__file__).resolve().parents[2]
MICRO, CLIPS = REPOSITORY / "build" / "micro", REPOSITORY / "benchmarks" / "micro" / "clips"
CLIP = CLIPS / "scene_9000006.flac"
pytestmark = pytest.mark.skipif(not MICRO.is_dir(), reason="make build/micro makes it")


def make(out: Path, recipe: Recipe, *, calibrate: Path | None = None, **options: Any) -> bundle_quant.QuantizeReport:
    made = quantize_options(MICRO, out, recipe, **options)
    return quantize_bundle(replace(made, calibrate=calibrate, threads=1))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_a_bundle_that_verifies_and_captions(tmp_path: Path, name: str) -> None:
    report = make(tmp_path / "out", RECIPES[name], calibrate=CLIPS)
    bundle = Bundle.open(tmp_path / "out")
    assert verify_bundle(bundle, EngineOptions().changed(threads=2)).ok
    assert report.bytes == bundle.manifest.total_bytes
    assert report.bytes <= (1.0 if name == "reference" else 0.4) * report.source_bytes
    with Captioner.open(tmp_path / "out") as captioner:
        assert captioner.caption(CLIP).text.startswith("a guitar plays")


@pytest.mark.slow
def test_the_manifest_says_how_it_was_made(tmp_path: Path) -> None:
    options = quantize_options(MICRO, tmp_path / "out", Recipe("int8", "Q4_K_M", "q8_0"), tensor_types=("attn_v=Q8_0",))
    made = replace(options, calibrate=CLIPS, save_imatrix=tmp_path / "imatrix.gguf", recipe="small")
    report = quantize_bundle(made)
    manifest = report.bundle.manifest
    assert (manifest.schema_version, manifest.encoder.precision) == (SCHEMA_VERSION, "int8")
    assert manifest.decoder is not None
    assert (manifest.decoder.precision, manifest.decoder.kv_type) == ("Q4_K_M", "q8_0")
    facts = manifest.quantization
    assert facts is not None
    assert facts.imatrix is not None
    assert facts.calibration is not None
    assert (facts.recipe, facts.tensor_types, facts.imatrix.name) == ("small", {"attn_v": "Q8_0"}, "audio")
    assert (facts.calibration.clips, facts.calibration.name) == (47, "clips")
    assert facts.embeddings_snr_db is not None
    assert facts.embeddings_snr_db > 30
    assert len(read_imatrix(tmp_path / "imatrix.gguf").entries) == 29
    tensors = gguf_tensors(report.bundle.path(DECODER))
    assert tensors["blk.1.attn_v.weight"].kind.name == "Q8_0"
    assert "## Quantized" in report.bundle.path(MODEL_CARD).read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imatrix.gguf", "out"]


def test_parts_that_are_not_named_stay(tmp_path: Path) -> None:
    source = Bundle.open(MICRO).manifest
    kept = make(tmp_path / "kv", Recipe(None, None, "q8_0")).bundle.manifest
    assert kept.files == {GOLDEN_FLAT: kept.files[GOLDEN_FLAT], **source.files}
    assert kept.decoder is not None
    assert (kept.encoder.precision, kept.decoder.kv_type) == ("fp32", "q8_0")
    encoder = make(tmp_path / "encoder", Recipe("int8", None, None)).bundle.manifest
    assert encoder.files[DECODER] == source.files[DECODER]
    again = quantize_bundle(quantize_options(tmp_path / "encoder", tmp_path / "both", Recipe(None, "Q8_0", None)))
    assert again.bundle.manifest.encoder.precision == "int8"
    assert verify_bundle(again.bundle, EngineSettings()).ok


def test_what_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, Recipe("int8", "Q4_K_M", None))

    def quantize(source: Path, recipe: Recipe, **options: Any) -> None:
        quantize_bundle(quantize_options(source, tmp_path / "other", recipe, **options))

    with pytest.raises(QuantizeError, match=r"the decoder of .* is Q4_K_M already"):
        quantize(out, Recipe(None, "Q3_K_M", None))
    with pytest.raises(QuantizeError, match=r"the encoder of .* is int8 already"):
        quantize(out, Recipe("int4-block", None, None))
    for again in (Recipe("int8", "Q4_K_M", "f16"), Recipe("int8", None, None), Recipe(None, "Q4_K_M", None)):
        with pytest.raises(
            QuantizeError, match="was quantized to int8, Q4_K_M, f16 already, so there is nothing to do"
        ):
            quantize(out, again)
    with pytest.raises(QuantizeError, match="F32 would store larger and no better"):
        quantize(MICRO, Recipe(None, "F32", None))
    with pytest.raises(QuantizeError, match="IQ2_XXS needs an importance matrix"):
        quantize(MICRO, Recipe(None, "IQ2_XXS", None))
    with pytest.raises(QuantizeError, match="--encoder mixed is chosen by measuring on clips"):
        quantize(MICRO, Recipe("mixed", None, None))
    with pytest.raises(QuantizeError, match="--tensor-type nothing matches no matrix"):
        quantize(MICRO, Recipe(None, "Q8_0", None), tensor_types=("nothing=Q8_0",))
    write_imatrix(tmp_path / "x.gguf", Imatrix({"blk.0.attn_q.weight": read_one()}, ("a",)))
    with pytest.raises(QuantizeError, match="says nothing about blk"):
        quantize(MICRO, Recipe(None, "Q4_K_M", None), imatrix=tmp_path / "x.gguf")
    with pytest.raises(OutputExistsError, match="is or lies in the bundle"):
        quantize_bundle(quantize_options(MICRO, MICRO, Recipe("int8", None, None)))
    with pytest.raises(OutputExistsError, match="lies in the bundle to be quantized"):
        quantize_bundle(quantize_options(MICRO, MICRO / "deeper" / "x", Recipe("int8", None, None)))
    with pytest.raises(OutputExistsError, match="pass --overwrite"):
        make(out, Recipe("int8", None, None))
    options = quantize_options(MICRO, tmp_path / "other", Recipe(None, "Q4_K_M", None))
    with pytest.raises(QuantizeError, match="--save-imatrix stores what"):
        quantize_bundle(replace(options, save_imatrix=tmp_path / "y"))
    assert not (tmp_path / "other").exists()


def read_one() -> Any:
    import numpy as np

    from dasheng_edge.quant.decoder.imatrix_file import Entry

    return Entry(np.ones(3, np.float32), 1)


def test_tensor_types_are_parsed() -> None:
    assert {pattern: kind.name for pattern, kind in parse_tensor_types(("a=b.c=q4_k",)).items()} == {"a=b.c": "Q4_K"}
    for text in ("attn_v", "=Q8_0", "attn_v=Q9"):
        with pytest.raises(QuantizeError, match="expected PATTERN=TYPE"):
            parse_tensor_types((text,))
    with pytest.raises(QuantizeError, match="is no regular expression"):
        parse_tensor_types(("(=Q8_0",))


def test_a_seam_that_is_too_far_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tolerances, "MAX_LOGITS_RELATIVE", 1e-6)
    with pytest.raises(QuantizeError, match=r"first logits of .* differs from the reference by"):
        make(tmp_path / "out", Recipe("int8", "Q4_K_M", None))
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_too_far_off_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dasheng_edge.quant.decoder.types import DECODER_TOLERANCES, DecoderTolerance

    monkeypatch.setitem(DECODER_TOLERANCES, "Q8_0", DecoderTolerance(1e-6, 1e-6))
    with pytest.raises(QuantizeError, match=r"decoder\.gguf differs from its source by"):
        make(tmp_path / "out", Recipe(None, "Q8_0", None))
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_cannot_hold_the_activations_leaves_nothing(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = QuantizeOptions(tiny_bundle, tmp_path / "fine", EncoderOptions("fp16"), DecoderOptions("F16"), threads=1)
    report = quantize_bundle(options)
    assert [bool(re.search(r", largest activation \d", step.note)) for step in report.steps[:2]] == [True, True]
    monkeypatch.setattr("dasheng_edge.quant.decoder.activations.FLOAT16_MAX", 0.5)
    refusal = r"decoder\.gguf: \w+ of block 0 reaches .*, and F16 holds at most 0.*Choose --decoder BF16 or F32"
    with pytest.raises(QuantizeError, match=refusal):
        quantize_bundle(replace(options, out=tmp_path / "out", encoder=None))
    assert [path.name for path in tmp_path.iterdir()] == ["fine"]


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_quant, "verify_bundle", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", Recipe("int8", "Q8_0", None))
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    alone = write_encoder_bundle(tiny_bundle, tmp_path / "alone")
    report = quantize_bundle(QuantizeOptions(alone, tmp_path / "out", EncoderOptions("int8")))
    assert verify_bundle(report.bundle, EngineSettings()).ok
    with pytest.raises(BundleKindError):
        quantize_bundle(QuantizeOptions(alone, tmp_path / "no", decoder=DecoderOptions("Q8_0")))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(build_app(), ["quantize", *map(str, arguments)])


def test_the_command(tmp_path: Path) -> None:
    result = run(MICRO, "--out", tmp_path / "out", "--recipe", "balanced", "--kv", "q8_0")
    assert result.exit_code == 0
    assert f"dasheng-edge verify {tmp_path / 'out'}" in result.stdout
    assert "int8: 38." in result.stderr
    report = run(MICRO, "--out", tmp_path / "out", "--decoder", "q4_k_m", "--overwrite", "--json")
    assert [step["name"] for step in json.loads(report.stdout)["steps"]] == ["encoder.onnx", DECODER, "golden.npz"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "name what to quantize"),
        (("--recipe", "tiny"), "needs an importance matrix"),
        (("--decoder", "IQ2_M"), "needs an importance matrix"),
        (("--encoder", "int8", "--tensor-type", "a=Q8_0"), "goes with --decoder"),
        (("--encoder", "int3"), "Invalid value"),
    ],
)
def test_wrong_usage(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    result = run(MICRO, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_a_missing_library_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ModuleNotFoundError(name="onnx_ir")

    monkeypatch.setattr("dasheng_edge.runtime.cli.options.import_module", missing)
    result = run(MICRO, "--out", tmp_path / "out", "--encoder", "int8")
    assert result.exit_code == 1
    assert f"quantize needs onnx_ir, which is not installed; run {install_line('quant', 'cpu')}" in result.stderr


# What parts that are copied keep, and when an importance matrix is measured


def one_clip(options: QuantizeOptions, **more: Any) -> Any:
    """Facts of a bundle that was made with a clip to calibrate on."""
    report = quantize_bundle(replace(options, calibrate=CLIP, threads=1, **more))
    return report.bundle.manifest.quantization


@pytest.mark.slow
def test_facts_of_a_mixed_encoder_stay_with_it(tmp_path: Path) -> None:
    first = one_clip(quantize_options(MICRO, tmp_path / "a", Recipe("mixed", None, None), min_snr_db=25.0))
    assert len(first.encoder_matrices) == 26
    second = quantize_bundle(quantize_options(tmp_path / "a", tmp_path / "b", Recipe(None, "Q8_0", None)))
    facts = second.bundle.manifest.quantization
    assert facts is not None
    assert facts.encoder_matrices == first.encoder_matrices
    assert (facts.embeddings_snr_db, facts.calibration) == (first.embeddings_snr_db, first.calibration)
    assert facts.source_sha256 != first.source_sha256


def test_facts_of_a_decoder_stay_with_it(tmp_path: Path) -> None:
    made = quantize_options(MICRO, tmp_path / "a", Recipe(None, "Q4_K_M", None), tensor_types=("attn_v=Q8_0",))
    first = one_clip(made)
    assert first.imatrix is not None
    # Clips are measured on again for the encoder, not for the decoder, which is copied.
    again = one_clip(quantize_options(tmp_path / "a", tmp_path / "b", Recipe("int8", None, None)))
    assert (again.imatrix, again.tensor_types) == (first.imatrix, {"attn_v": "Q8_0"})
    assert again.embeddings_snr_db > 30
    files = [Bundle.open(tmp_path / name).manifest.files[DECODER] for name in "ab"]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        (Recipe("int8", None, None), {}),
        (Recipe("int8", "F16", None), {}),
        (Recipe(None, "Q4_0", None), {"calibrate": None}),
        (Recipe(None, "Q4_0", None), {"importance": False}),
    ],
)
def test_what_is_not_measured_cannot_be_kept(tmp_path: Path, recipe: Recipe, more: dict[str, Any]) -> None:
    options = replace(quantize_options(MICRO, tmp_path / "out", recipe), calibrate=CLIP, save_imatrix=tmp_path / "i")
    with pytest.raises(QuantizeError, match="--save-imatrix stores what --calibrate CLIPS measured"):
        quantize_bundle(replace(options, **more))
    assert list(tmp_path.iterdir()) == []


def test_an_importance_matrix_never_takes_the_place_of_something_else(tmp_path: Path) -> None:
    source = shutil.copytree(MICRO, tmp_path / "source")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("no folder")
    options = replace(quantize_options(source, tmp_path / "out", Recipe(None, "Q4_0", None)), calibrate=CLIP)
    for place, error, said in (
        (source / DECODER, OutputExistsError, "lies in the bundle .*; choose another --save-imatrix"),
        (tmp_path / "out" / "i.gguf", OutputExistsError, "lies in the bundle .*; choose another --save-imatrix"),
        (tmp_path / "folder", OutputExistsError, "exists and is not an importance matrix .* another --save-imatrix"),
        (tmp_path / "notes.txt", OutputExistsError, "exists and is not an importance matrix .*--overwrite will not"),
        (tmp_path / "file" / "i.gguf", OutputWriteError, "file is not a folder; choose another --save-imatrix"),
    ):
        with pytest.raises(error, match=said):
            quantize_bundle(replace(options, save_imatrix=place, overwrite=True))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert sha256_of(source / DECODER) == sha256_of(MICRO / DECODER)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "notes.txt", "source"]


def test_an_importance_matrix_is_replaced_only_when_asked(tmp_path: Path) -> None:
    made = quantize_options(MICRO, tmp_path / "a", Recipe(None, "Q4_0", None))
    options = replace(made, calibrate=CLIP, save_imatrix=tmp_path / "new" / "i.gguf", threads=1)
    quantize_bundle(options)
    first = (tmp_path / "new" / "i.gguf").read_bytes()
    with pytest.raises(OutputExistsError, match=r"i\.gguf already exists; pass --overwrite or choose another --save"):
        quantize_bundle(replace(options, out=tmp_path / "b"))
    quantize_bundle(replace(options, overwrite=True))
    assert (tmp_path / "new" / "i.gguf").read_bytes() == first
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["i.gguf"]


def test_an_importance_matrix_is_not_kept_of_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise QuantizeError("no")

    monkeypatch.setattr(bundle_quant, "quantize_decoder", fail)
    options = replace(quantize_options(MICRO, tmp_path / "a", Recipe(None, "Q4_0", None)), calibrate=CLIP)
    with pytest.raises(QuantizeError, match="no"):
        quantize_bundle(replace(options, save_imatrix=tmp_path / "i.gguf"))
    assert list(tmp_path.iterdir()) == []


def test_the_same_command_makes_the_same_decoder(tmp_path: Path) -> None:
    made = []
    for name in "ab":
        options = quantize_options(MICRO, tmp_path / name, Recipe(None, "Q4_0", None))
        report = quantize_bundle(replace(options, calibrate=CLIP, threads=1))
        made.append(report.bundle.manifest.files[DECODER])
    assert made[0] == made[1]


def test_an_encoder_alone_has_no_importance_matrix(tiny_bundle: Path, tmp_path: Path) -> None:
    alone = write_encoder_bundle(tiny_bundle, tmp_path / "alone")
    options = QuantizeOptions(alone, tmp_path / "out", EncoderOptions("int8"), calibrate=CLIP)
    with pytest.raises(QuantizeError, match="--save-imatrix stores what"):
        quantize_bundle(replace(options, save_imatrix=tmp_path / "i"))
    with pytest.raises(BundleKindError, match="holds a Dasheng encoder only"):
        quantize_bundle(replace(options, kv_type="q8_0"))


@pytest.mark.parametrize("wrong", [float("nan"), -1.0, 141.0, float("inf")])
def test_a_signal_to_noise_ratio_that_makes_no_sense(tmp_path: Path, wrong: float) -> None:
    options = quantize_options(MICRO, tmp_path / "out", Recipe("mixed", None, None), min_snr_db=wrong)
    with pytest.raises(QuantizeError, match=r"--min-snr is .*, expected 0 to 140 dB"):
        quantize_bundle(replace(options, calibrate=CLIP))


STEPS = (
    "cut_vocabulary", "calibrate_on", "changed_answers", "quantize_encoder", "measured_importance", "quantize_decoder",
    "measured_tolerances",
)  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_an_error_in_any_step_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    make(tmp_path / "out", Recipe(None, None, "q8_0"))
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise QuantizeError("no")

    monkeypatch.setattr(bundle_quant, step, fail)
    options = quantize_options(MICRO, tmp_path / "out", Recipe("int8", "Q4_0", None))
    with pytest.raises(QuantizeError, match="no"):
        quantize_bundle(
            replace(options, vocabulary=VocabularyOptions(size=448), calibrate=CLIP, threads=1, overwrite=True)
        )
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_overwriting_replaces_the_whole_bundle(tmp_path: Path) -> None:
    make(tmp_path / "out", Recipe("fp16", None, None))
    assert (tmp_path / "out" / "encoder.cuda.onnx").is_file()
    options = quantize_options(MICRO, tmp_path / "out", Recipe("int8", None, None))
    report = quantize_bundle(replace(options, overwrite=True, threads=1))
    assert set(report.bundle.manifest.files) == {*Bundle.open(MICRO).manifest.files, GOLDEN_FLAT}
    assert not (tmp_path / "out" / "encoder.cuda.onnx").exists()


def test_weights_in_a_file_beside_the_source_come_along(tmp_path: Path) -> None:
    """As in exports of more than 500 MB, of which a smaller precision fits into the graph itself."""
    source = shutil.copytree(MICRO, tmp_path / "source")
    model = load_graph(MICRO / ENCODER)
    save_graph(model, source / ENCODER, beside=True)
    manifest = Bundle.open(MICRO).manifest
    names = (*manifest.files, f"{ENCODER}.data")
    files = {name: FileFacts(bytes=(source / name).stat().st_size, sha256=sha256_of(source / name)) for name in names}
    text = manifest.model_copy(update={"files": files}).model_dump_json()
    (source / "manifest.json").write_text(text, encoding="utf-8")
    report = quantize_bundle(quantize_options(source, tmp_path / "out", Recipe("int8", None, None)))
    shutil.rmtree(source)
    assert set(report.bundle.manifest.files) == {*manifest.files, GOLDEN_FLAT}
    assert verify_bundle(report.bundle, EngineSettings()).ok
