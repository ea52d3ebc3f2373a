"""Bundles from bundles: every recipe, what is refused, and that nothing half-made stays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dasheng_edge.quant import bundle_quant, cli
from dasheng_edge.quant.bundle_quant import QuantizeOptions, quantize_bundle, quantize_options
from dasheng_edge.quant.decoder_quant import DecoderOptions, parse_tensor_types
from dasheng_edge.quant.encoder_quant import EncoderOptions
from dasheng_edge.quant.gguf_file import gguf_tensors
from dasheng_edge.quant.imatrix_file import Imatrix, read_imatrix, write_imatrix
from dasheng_edge.quant.recipes import RECIPES, Recipe
from dasheng_edge.runtime.bundle import DECODER, MODEL_CARD, Bundle
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.cli import build_app
from dasheng_edge.runtime.errors import BundleKindError, OutputExistsError, QuantizeError
from dasheng_edge.runtime.verify import verify_bundle
from tests.bundle_kinds import write_encoder_bundle

REPOSITORY = Path(__file__).resolve().parents[1]
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
    assert verify_bundle(bundle, threads=2).ok
    assert report.bytes == bundle.manifest.total_bytes
    assert report.bytes <= (1.0 if name == "reference" else 0.4) * report.source_bytes
    with Captioner.open(tmp_path / "out") as captioner:
        assert captioner.caption(CLIP).text.startswith("a guitar plays")


def test_the_manifest_says_how_it_was_made(tmp_path: Path) -> None:
    options = quantize_options(MICRO, tmp_path / "out", Recipe("int8", "Q4_K_M", "q8_0"), tensor_types=("attn_v=Q8_0",))
    made = replace(options, calibrate=CLIPS, save_imatrix=tmp_path / "imatrix.gguf", recipe="small")
    report = quantize_bundle(made)
    manifest = report.bundle.manifest
    assert (manifest.schema_version, manifest.encoder.precision) == (3, "int8")
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
    assert kept.files == source.files
    assert kept.decoder is not None
    assert (kept.encoder.precision, kept.decoder.kv_type) == ("fp32", "q8_0")
    encoder = make(tmp_path / "encoder", Recipe("int8", None, None)).bundle.manifest
    assert encoder.files[DECODER] == source.files[DECODER]
    again = quantize_bundle(quantize_options(tmp_path / "encoder", tmp_path / "both", Recipe(None, "Q8_0", None)))
    assert again.bundle.manifest.encoder.precision == "int8"
    assert verify_bundle(again.bundle, threads=1).ok


def test_what_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, Recipe("int8", "Q4_K_M", None))

    def quantize(source: Path, recipe: Recipe, **options: Any) -> None:
        quantize_bundle(quantize_options(source, tmp_path / "other", recipe, **options))

    with pytest.raises(QuantizeError, match=r"the decoder of .* is Q4_K_M already"):
        quantize(out, Recipe(None, "Q3_K_M", None))
    with pytest.raises(QuantizeError, match=r"the encoder of .* is int8 already"):
        quantize(out, Recipe("int4-block", None, None))
    with pytest.raises(QuantizeError, match="F32 would store larger and no better"):
        quantize(MICRO, Recipe(None, "F32", None))
    with pytest.raises(QuantizeError, match="IQ2_XXS needs an importance matrix"):
        quantize(MICRO, Recipe(None, "IQ2_XXS", None))
    with pytest.raises(QuantizeError, match="--encoder mixed is chosen by measuring on clips"):
        quantize(MICRO, Recipe("mixed", None, None))
    with pytest.raises(QuantizeError, match="--tensor-type nothing matches no tensor"):
        quantize(MICRO, Recipe(None, "Q8_0", None), tensor_types=("nothing=Q8_0",))
    write_imatrix(tmp_path / "x.gguf", Imatrix({"blk.0.attn_q.weight": read_one()}, ("a",)))
    with pytest.raises(QuantizeError, match="says nothing about blk"):
        quantize(MICRO, Recipe(None, "Q4_K_M", None), imatrix=tmp_path / "x.gguf")
    with pytest.raises(OutputExistsError, match="is the bundle to be quantized"):
        quantize_bundle(quantize_options(MICRO, MICRO, Recipe("int8", None, None)))
    with pytest.raises(OutputExistsError, match="pass --overwrite"):
        make(out, Recipe("int8", None, None))
    options = quantize_options(MICRO, tmp_path / "other", Recipe(None, "Q4_K_M", None))
    with pytest.raises(QuantizeError, match="--save-imatrix keeps what"):
        quantize_bundle(replace(options, save_imatrix=tmp_path / "y"))
    assert not (tmp_path / "other").exists()


def read_one() -> Any:
    import numpy as np

    from dasheng_edge.quant.imatrix_file import Entry

    return Entry(np.ones(3, np.float32), 1)


def test_tensor_types_are_parsed() -> None:
    assert {pattern: kind.name for pattern, kind in parse_tensor_types(("a=b.c=q4_k",)).items()} == {"a=b.c": "Q4_K"}
    for text in ("attn_v", "=Q8_0", "attn_v=Q9"):
        with pytest.raises(QuantizeError, match="expected PATTERN=TYPE"):
            parse_tensor_types((text,))
    with pytest.raises(QuantizeError, match="is no regular expression"):
        parse_tensor_types(("(=Q8_0",))


def test_a_seam_that_is_too_far_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_quant, "LARGEST_LOGITS", 1e-6)
    with pytest.raises(QuantizeError, match=r"first logits of .* differs from the reference by"):
        make(tmp_path / "out", Recipe("int8", "Q4_K_M", None))
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_too_far_off_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dasheng_edge.quant.decoder_types import DECODER_TOLERANCES, DecoderTolerance

    monkeypatch.setitem(DECODER_TOLERANCES, "Q8_0", DecoderTolerance(1e-6, 1e-6))
    with pytest.raises(QuantizeError, match=r"decoder\.gguf differs from its source by"):
        make(tmp_path / "out", Recipe(None, "Q8_0", None))
    assert list(tmp_path.iterdir()) == []


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
    assert verify_bundle(report.bundle, threads=1).ok
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

    monkeypatch.setattr(cli, "import_module", missing)
    result = run(MICRO, "--out", tmp_path / "out", "--encoder", "int8")
    assert result.exit_code == 1
    assert "quantize needs onnx_ir, which is not installed; run pip install 'dasheng-edge[quant,cpu]'" in result.stderr
