"""`dasheng-edge quantize` and `compare` in-process: what they ask for, what they print where, and exit codes."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType
from typer.testing import CliRunner

from dasheng_edge.quant import bundle_compare, bundle_quant
from dasheng_edge.quant.bundle_quant import QuantizeOptions, QuantizeReport
from dasheng_edge.quant.decoder.types import DecoderOptions
from dasheng_edge.quant.encoder.quantize import EncoderOptions
from dasheng_edge.quant.recipes import RECIPES
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.cli.app import build_app
from dasheng_edge.runtime.machine.installation import install_line
from dasheng_edge.runtime.progress import Progress, StepReport
from tests.fixtures import fake_report

WHOLE = QuantizeOptions(Path("model"), Path("out"))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(build_app(), ["quantize", *map(str, arguments)])


def said(result: Any) -> str:
    """Standard error as one line."""
    return " ".join(result.stderr.split())


@pytest.fixture
def asked(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[QuantizeOptions]:
    """The options of each quantization, which is not done: its report is made up."""
    options: list[QuantizeOptions] = []

    def quantize(given: QuantizeOptions, progress: Progress) -> QuantizeReport:
        options.append(given)
        steps = (
            StepReport("encoder.onnx", 0.0125, 0.1, "relative RMS", 2.0, 500_000, "int8: 38.1 dB SNR at its output"),
        )
        progress.begin("encoder.onnx", 1, "trials")
        progress.advance(1)
        progress.end(steps[0])
        warnings = ("3 clips are few",) if given.calibrate else ()
        return QuantizeReport(Bundle.open(tiny_bundle), steps, 2.5, 2_500_000, 10_000_000, warnings)

    monkeypatch.setattr(bundle_quant, "quantize_bundle", quantize)
    return options


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--encoder", "int8"), replace(WHOLE, encoder=EncoderOptions("int8"))),
        (("--decoder", "q4_k_m"), replace(WHOLE, decoder=DecoderOptions("Q4_K_M"))),
        (("--kv", "q8_0", "--threads", 1), replace(WHOLE, kv_type="q8_0", threads=1)),
        (
            ("--encoder", "mixed", "--min-snr", 35, "--calibrate", "clips", "--overwrite"),
            replace(WHOLE, encoder=EncoderOptions("mixed", 35.0), calibrate=Path("clips"), overwrite=True),
        ),
        (
            ("--decoder", "IQ2_M", "--imatrix", "x.gguf"),
            replace(WHOLE, decoder=DecoderOptions("IQ2_M", Path("x.gguf"))),
        ),
        (
            ("--decoder", "Q4_0", "--tensor-type", "attn_v=q8_0", "--tensor-type", "output=F16"),
            replace(
                WHOLE,
                decoder=DecoderOptions(
                    "Q4_0", None, {"attn_v": GGMLQuantizationType.Q8_0, "output": GGMLQuantizationType.F16}
                ),
            ),
        ),
        (
            ("--decoder", "Q4_0", "--calibrate", "c.jsonl", "--save-imatrix", "y.gguf"),
            replace(
                WHOLE, decoder=DecoderOptions("Q4_0"), calibrate=Path("c.jsonl"), save_imatrix=Path("y.gguf")
            ),
        ),
    ],
)  # fmt: skip
def test_options_are_parsed(
    asked: list[QuantizeOptions], arguments: tuple[object, ...], wanted: QuantizeOptions
) -> None:
    result = run("model", "--out", "out", *arguments)
    assert result.exit_code == 0, result.stderr
    assert asked == [wanted]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_all_parts(asked: list[QuantizeOptions], name: str) -> None:
    assert run("model", "--out", "out", "--recipe", name, "--calibrate", "clips").exit_code == 0
    recipe = RECIPES[name]
    assert recipe.encoder is not None
    assert recipe.decoder is not None
    parts = {"encoder": EncoderOptions(recipe.encoder), "decoder": DecoderOptions(recipe.decoder)}
    assert asked == [replace(WHOLE, **parts, kv_type=recipe.kv_type, calibrate=Path("clips"), recipe=name)]  # type: ignore[arg-type]


def test_a_part_that_is_named_goes_before_the_recipes(asked: list[QuantizeOptions]) -> None:
    own = ("--encoder", "fp16", "--decoder", "Q8_0", "--kv", "q4_0", "--imatrix", "i")
    assert run("model", "--out", "out", "--recipe", "small", *own).exit_code == 0
    (options,) = asked
    assert options.encoder == EncoderOptions("fp16")
    assert options.decoder == DecoderOptions("Q8_0", Path("i"))
    assert (options.kv_type, options.recipe) == ("q4_0", None)  # what comes out is not that recipe


def test_a_decoder_that_is_named_needs_no_importance_matrix_of_the_recipes(asked: list[QuantizeOptions]) -> None:
    assert run("model", "--out", "out", "--recipe", "tiny", "--decoder", "Q6_K").exit_code == 0
    (options,) = asked
    assert options.decoder == DecoderOptions("Q6_K")
    assert run("model", "--out", "out", "--recipe", "tiny", "--decoder", "IQ2_XS").exit_code == 2


def test_results_go_to_stdout_and_steps_to_stderr(asked: list[QuantizeOptions]) -> None:
    result = run("model", "--out", "my out", "--encoder", "int8")
    assert asked
    assert result.stdout == (
        "my out: 2.5 MB, 25 % of model, in 2.5 s\n"
        "check it wherever it runs with: dasheng-edge verify 'my out'\n"
    )  # fmt: skip
    assert "encoder.onnx    error 1.25e-02 of 1.0e-01 relative RMS" in result.stderr
    assert "int8: 38.1 dB SNR at its output" in result.stderr
    assert "warning" not in result.stderr


def test_warnings_go_to_stderr_also_with_json(asked: list[QuantizeOptions], tiny_bundle: Path) -> None:
    result = run("model", "--out", "out", "--encoder", "int8", "--calibrate", "clips", "--json")
    assert asked
    assert "warning: 3 clips are few\n" in result.stderr
    report = json.loads(result.stdout)
    assert report.keys() == {"bundle", "bytes", "source_bytes", "seconds", "steps", "warnings"}
    assert (report["bundle"], report["bytes"], report["source_bytes"]) == (str(tiny_bundle), 2_500_000, 10_000_000)
    assert report["steps"][0]["error"] == 0.0125
    assert report["warnings"] == ["3 clips are few"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name what to quantize: --recipe, or any of --encoder, --decoder, --kv and --vocab"),
        (("--calibrate", "clips"), "name what to quantize"),
        (("--encoder", "int8", "--tensor-type", "a=Q8_0"), "--tensor-type goes with --decoder or --recipe"),
        (("--encoder", "int8", "--imatrix", "i"), "--imatrix goes with --decoder or --recipe"),
        (("--recipe", "tiny"), "--recipe tiny needs an importance matrix; pass --calibrate CLIPS"),
        (("--decoder", "IQ3_XXS"), "--decoder IQ3_XXS needs an importance matrix; pass --calibrate CLIPS"),
        (("--recipe", "tiny", "--decoder", "IQ2_M"), "--decoder IQ2_M needs an importance matrix"),
        (("--encoder", "int3"), "Invalid value for '--encoder'"),
        (("--decoder", "Q9"), "Invalid value for '--decoder'"),
        (("--decoder", "Q4_0", "--kv", "f32"), "Invalid value for '--kv'"),
        (("--recipe", "huge"), "Invalid value for '--recipe'"),
        (("--encoder", "int8", "--threads", "0"), "Invalid value for '--threads'"),
        (("--encoder", "mixed", "--min-snr", "much"), "Invalid value for '--min-snr'"),
    ],
)
def test_wrong_usage_exits_with_2(asked: list[QuantizeOptions], arguments: tuple[str, ...], message: str) -> None:
    result = run("model", "--out", "out", *arguments)
    assert result.exit_code == 2
    assert message in said(result)
    assert not asked


@pytest.mark.parametrize("arguments", [(), ("model",), ("--out", "x"), ("model", "more", "--out", "x")])
def test_bundle_and_output_must_be_named(asked: list[QuantizeOptions], arguments: tuple[str, ...]) -> None:
    assert run(*arguments, "--encoder", "int8").exit_code == 2
    assert not asked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--decoder", "Q4_0", "--tensor-type", "attn_v"), "error: --tensor-type attn_v cannot be read; expected PATT"),
        (("--encoder", "int8"), "error: cannot open bundle gone: nothing of this name exists"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("gone", "--out", "out", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["onnx_ir", "gguf"])
def test_a_missing_library_is_one_sentence_with_the_fix(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    build_app()
    monkeypatch.setattr("dasheng_edge.runtime.cli.options.import_module", absent)
    result = run("model", "--out", "out", "--encoder", "int8")
    assert result.exit_code == 1
    assert result.stderr.endswith(
        f"quantize needs {missing}, which is not installed; run {install_line('quant', 'cpu')}\n"
    )


def test_our_own_broken_import_is_not_mistaken_for_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise ModuleNotFoundError("No module named 'dasheng_edge.gone'", name="dasheng_edge.gone")

    monkeypatch.setattr("dasheng_edge.runtime.cli.options.import_module", broken)
    assert isinstance(run("model", "--out", "out", "--encoder", "int8").exception, ModuleNotFoundError)


def test_the_command_line_itself_needs_nothing_heavy() -> None:
    source = Path(str(importlib.import_module("dasheng_edge.quant.cli").__file__)).read_text()
    assert not any(f"import {name}" in source for name in ("onnx", "numpy", "gguf", "llama_cpp"))


@pytest.mark.parametrize("share", [0.0, 0.35])
def test_the_command_says_that_the_machine_was_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    made = fake_report.report()
    cost = made.reference.cost.model_copy(update={"others_share": share})
    made = made.model_copy(update={"reference": made.reference.model_copy(update={"cost": cost})})
    monkeypatch.setattr(bundle_compare, "compare", lambda *_: made)
    command = ["compare", "reference", "fp32/Q8_0", "--clips", str(tmp_path), "--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(build_app(), command).stdout
    assert ("Other programs used up to 35% of the machine" in shown) == (share > 0)
