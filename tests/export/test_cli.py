"""`dasheng-edge export` in-process: what it prints where, and its exit codes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dasheng_edge.export import bundle_export
from dasheng_edge.export.bundle_export import ExportReport
from dasheng_edge.export.options import ExportOptions
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.cli.app import build_app
from dasheng_edge.runtime.machine.installation import install_line
from dasheng_edge.runtime.progress import Progress, StepReport


def run(*arguments: object) -> Any:
    return CliRunner().invoke(build_app(), ["export", *map(str, arguments)])


@pytest.fixture
def asked(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[ExportOptions]:
    """The options of each export, which is not done: its report is made up."""
    options: list[ExportOptions] = []

    def export(given: ExportOptions, progress: Progress) -> ExportReport:
        options.append(given)
        steps = (
            StepReport("encoder.onnx", 1.25e-6, 1e-4, "relative RMS", 2.0, 500_000, "worst of 9 inputs"),
            StepReport("decoder.gguf", 2e-4, 4e-4, "relative RMS", 0.5, 2_000_000),
        )
        for step, (total, unit) in zip(steps, [(1, "graphs"), (2_000_000, "bytes")], strict=True):
            progress.begin(step.name, total, unit)
            progress.advance(total)
            progress.end(step)
        return ExportReport(Bundle.open(tiny_bundle), steps, 2.5, 2_500_000)

    monkeypatch.setattr(bundle_export, "export_bundle", export)
    return options


def test_options_are_parsed(asked: list[ExportOptions]) -> None:
    result = run("model", "--adapter", "a", "--adapter", "b", "--out", "bundle", "--decoder", "Q4_K_M", "--overwrite")

    assert result.exit_code == 0
    assert asked == [
        ExportOptions(Path("model"), Path("bundle"), (Path("a"), Path("b")), "fp32", "Q4_K_M", overwrite=True)
    ]


def test_the_decoders_type_is_taken_in_any_case(asked: list[ExportOptions]) -> None:
    assert run("model", "--out", "bundle", "--decoder", "q4_k_m").exit_code == 0
    assert [options.decoder for options in asked] == ["Q4_K_M"]


def test_a_printed_path_can_be_typed(asked: list[ExportOptions]) -> None:
    assert run("model", "--out", "my bundle").stdout.endswith("dasheng-edge verify 'my bundle'\n")
    assert asked


def test_without_a_terminal_no_empty_line_comes(asked: list[ExportOptions], tmp_path: Path) -> None:
    assert all(run("model", "--out", "bundle").stderr.splitlines())
    assert asked


def test_a_model_of_the_hub_is_pulled_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stderr = run("mispeech/midashenglm-7b-bf16", "--out", "bundle").stderr
    assert stderr.startswith("error: cannot open checkpoint mispeech/midashenglm-7b-bf16: it does not exist")
    assert stderr.endswith("model of the hub, download it with `dasheng-edge pull mispeech/midashenglm-7b-bf16`\n")


def test_results_go_to_stdout_and_steps_to_stderr(asked: list[ExportOptions]) -> None:
    result = run("model", "--out", "bundle")

    assert asked == [ExportOptions(Path("model"), Path("bundle"))]
    assert result.stdout == (
        "bundle: 2.5 MB in 2.5 s, every step within its tolerance\n"
        "check it wherever it runs with: dasheng-edge verify bundle\n"
    )
    assert "encoder.onnx    error 1.25e-06 of 1.0e-04 relative RMS" in result.stderr
    assert "0.50 MB     2.0 s  worst of 9 inputs" in result.stderr
    assert "decoder.gguf    error 2.00e-04" in result.stderr


def test_json_is_for_machines(asked: list[ExportOptions], tiny_bundle: Path) -> None:
    report = json.loads(run("model", "--out", "bundle", "--json").stdout)

    assert report["bundle"] == str(tiny_bundle)
    assert report["bytes"] == 2_500_000
    assert [step["error"] for step in report["steps"]] == [1.25e-6, 2e-4]


@pytest.mark.parametrize(
    "arguments", [["model"], ["--out", "x"], ["model", "--out", "x", "--decoder", "Q9"], ["model", "--out", "x", "y"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], asked: list[ExportOptions]) -> None:
    assert run(*arguments).exit_code == 2
    assert not asked


def test_an_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    result = run(tmp_path / "absent", "--out", tmp_path / "bundle")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"error: cannot open checkpoint {tmp_path / 'absent'}: it does not exist" in result.stderr
    assert "Traceback" not in result.stderr


def test_outputs_and_names_are_refused_before_anything_heavy_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, loaded = build_app(), list[str]()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()

    def load(name: str) -> Any:
        loaded.append(name)
        return importlib.import_module(name)

    monkeypatch.setattr("dasheng_edge.runtime.cli.options.import_module", load)
    for out in ("there", "there/file/x"):
        result = CliRunner().invoke(app, ["export", "model", "--out", str(tmp_path / out)])
        assert result.exit_code == 1
        assert str(tmp_path / out) in result.stderr
    assert not loaded
    assert "'nonsense'" in CliRunner().invoke(app, ["pull", "nonsense"]).stderr
    assert loaded == ["dasheng_edge.export.hub.model_id"]


def test_other_precisions_of_the_encoder_are_made_by_quantize() -> None:
    result = run("model", "--out", "x", "--encoder", "int8")
    assert result.exit_code == 2
    assert "dasheng-edge quantize BUNDLE --out BUNDLE2 --encoder int8" in " ".join(result.stderr.split())


@pytest.mark.parametrize("missing", ["torch", "peft"])
def test_a_missing_extra_is_one_sentence_with_the_fix(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    build_app()
    monkeypatch.setattr("dasheng_edge.runtime.cli.options.import_module", absent)
    result = run("model", "--out", "bundle")

    assert result.exit_code == 1
    assert f"export needs {missing}, which is not installed; run {install_line('export', 'cpu')}" in result.stderr


def test_our_own_broken_import_is_not_mistaken_for_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ModuleNotFoundError("No module named 'dasheng_edge.gone'", name="dasheng_edge.gone")

    monkeypatch.setattr("dasheng_edge.runtime.cli.options.import_module", broken)
    assert isinstance(run("model", "--out", "bundle").exception, ModuleNotFoundError)


def test_the_command_line_itself_needs_no_torch() -> None:
    source = Path(str(importlib.import_module("dasheng_edge.export.cli").__file__)).read_text()
    assert "import torch" not in source
