"""The export benchmark: what it measures of a process, what it makes of reports, and what it leaves behind."""

from __future__ import annotations

import io
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.export import measure as export
from benchmarks.export.measure import VARIANTS, Row, StepFailedError, choose, failures, last_json, main, measure, said
from benchmarks.export.table import as_markdown, as_table, page, table_lines, worst
from benchmarks.places import MICRO, REPOSITORY
from benchmarks.records import machine, measured_run
from benchmarks.records.measured_run import MeasuredRun, memory_of, run_measured
from benchmarks.synthetic.shapes import ARCHITECTURES, PARAMETERS, parameters, shapes

BASE = next(variant for variant in VARIANTS if variant.name == "dasheng-base")
COUNT = parameters(shapes(ARCHITECTURES["dasheng-base"].shrunken(1)))["encoder"]
SEAM = {
    "clip": "knock",
    "name": "patches",
    "error": 3e-7,
    "tolerance": 1e-4,
    "unit": "relative",
    "note": "",
    "ok": True,
}
STEP = {"name": "encoder.onnx", "error": 4e-7, "tolerance": 1e-4, "unit": "relative RMS", "seconds": 1.5, "bytes": 7}
# Plays `dasheng-edge`: `export CHECKPOINT --out BUNDLE --json ...` and `verify BUNDLE --json`.
STUB = """
import json, pathlib, sys
said = json.loads(pathlib.Path(__file__).with_suffix(".json").read_text())[sys.argv[1]]
if sys.argv[1] == "export":
    bundle = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
    bundle.mkdir(exist_ok="--overwrite" in sys.argv)
    (bundle / "manifest.json").write_text(json.dumps(said["manifest"]))
    (bundle / "encoder.onnx").write_bytes(b"1234567")
print("a line before", file=sys.stderr)
print(said["stdout"])
sys.exit(said["status"])
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts the stub in the place of the program; the arguments change what it says."""
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    monkeypatch.setattr(export, "COMMAND", (sys.executable, str(path)))
    monkeypatch.setattr(export, "DRAFTS", tmp_path / "records")

    def say(*, encoder: int = COUNT, verify: Any = None, status: int = 0, step: str = "verify") -> None:
        manifest = {"encoder": {"parameters": encoder, "precision": "fp32"}, "decoder": None}
        said: dict[str, dict[str, Any]] = {
            "export": {"manifest": manifest, "status": 0, "stdout": json.dumps({"steps": [STEP]})},
            "verify": {"status": 0, "stdout": json.dumps({"seams": [SEAM]} if verify is None else verify)},
        }
        said[step]["status"] = status
        path.with_suffix(".json").write_text(json.dumps(said))

    say()
    return say


def try_base(work: Path) -> Row:
    work.mkdir(exist_ok=True)
    return measure(BASE, None, work, layers=1)


def python(code: str) -> MeasuredRun:
    return run_measured([sys.executable, "-c", code], Path.cwd())


def test_a_process_is_measured_alone() -> None:
    held = bytearray(300_000_000)
    held[::4096] = b"1" * len(held[::4096])  # what this process has is not what its children have
    large = python("import time; x = bytearray(200_000_000); x[::4096] = b'1' * len(x[::4096]); time.sleep(0.4)")
    small = python("import sys, time; time.sleep(0.3); print('out'); print('err', file=sys.stderr); sys.exit(7)")
    assert large.peak_rss_bytes > 200e6 > small.peak_rss_bytes  # which comes later: nothing is carried over
    assert (small.returncode, small.stdout, small.stderr) == (7, "out\n", "err\n")
    assert 0.3 < small.seconds < 30
    if sys.platform == "linux":
        assert large.peak_anonymous_bytes is not None
        assert 200e6 < large.peak_anonymous_bytes <= large.peak_rss_bytes
        assert small.peak_anonymous_bytes is not None
        assert small.peak_anonymous_bytes < 100e6


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_processes_of_a_process_count() -> None:
    child = "import time; x = b'1' * 100_000_000; time.sleep(0.5)"
    both = python(f"import subprocess, sys; x = b'1' * 100_000_000; subprocess.run([sys.executable, '-c', {child!r}])")
    assert both.peak_rss_bytes > 200e6
    assert both.peak_anonymous_bytes is not None
    assert both.peak_anonymous_bytes > 200e6


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert memory_of(2**22 + 1) == {}  # beyond the largest process id


@pytest.mark.parametrize(("heeds", "stop_s"), [(True, 30.0), (False, 0.1)])
def test_an_interruption_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heeds: bool, stop_s: float
) -> None:
    started: list[int] = []

    def interrupt(pid: int) -> dict[str, int]:
        if not ready.exists():  # its handlers are not set yet
            return {}
        started.append(pid)
        raise KeyboardInterrupt

    ready, cleaned = tmp_path / "ready", tmp_path / "cleaned"
    monkeypatch.setattr(measured_run, "memory_of", interrupt)
    monkeypatch.setattr(measured_run, "STOP_S", stop_s)
    deaf = "" if heeds else "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    with pytest.raises(KeyboardInterrupt):
        python(
            f"import pathlib, signal, time\n{deaf}\ntry:\n  pathlib.Path({str(ready)!r}).touch(); time.sleep(60)\n"
            f"finally:\n  pathlib.Path({str(cleaned)!r}).touch()"
        )
    assert cleaned.exists() is heeds
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


def test_a_variant_is_a_row_of_what_the_reports_say(tmp_path: Path, stub: Callable[..., None]) -> None:
    stub()
    row = try_base(tmp_path / "work")
    assert row.failure is None
    assert row.parameters == row.expected_parameters == {"encoder": COUNT}
    assert row.export["steps"] == [STEP]
    assert row.verify["seams"] == [SEAM]
    assert row.files["encoder.onnx"] == 7
    assert row.encoder_type == "fp32"
    assert row.export["seconds"] > 0
    assert row.checkpoint["bytes"] > 4 * COUNT


def test_published_counts_are_expected_of_whole_models(tmp_path: Path) -> None:
    assert export.expected_parameters("7b", tmp_path, None) == PARAMETERS["7b"]
    micro = export.expected_parameters(None, MICRO / "checkpoint", None)
    assert micro == {"encoder": 4_869_760, "projector": 393_728, "decoder": 3_543_296}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"encoder": 5}, f"encoder has 5 parameters, expected {COUNT}"),
        ({"verify": {"seams": []}}, "verify compared nothing"),
        (
            {"verify": {"seams": [{**SEAM, "error": None, "ok": False}]}, "status": 1},
            "verify: patches of knock is None, expected at most 0.0001",
        ),
        ({"verify": ["no", "object"]}, "verify printed a list, expected an object"),
        ({"status": 2}, "verify: exit status 2: a line before"),
        ({"status": 1, "step": "export"}, "export: exit status 1: a line before"),
    ],
)
def test_a_failure_is_a_row_that_says_why(
    tmp_path: Path, stub: Callable[..., None], changes: dict[str, Any], why: str
) -> None:
    stub(**changes)
    row = try_base(tmp_path / "work")
    assert row.failure is not None
    assert why in row.failure
    assert any("failed" in cell for line in table_lines([asdict(row)]) for cell in line)


def test_output_without_json_is_a_failure() -> None:
    run = MeasuredRun(0, "done\n", "", 1.0, 1, None)
    with pytest.raises(StepFailedError, match="export printed no JSON: exit status 0: done"):
        last_json(run, "export")
    assert said("export", replace(run, returncode=-9, stdout="")) == "export: killed by signal 9: it said nothing"


def test_a_failure_names_no_folder() -> None:
    run = MeasuredRun(1, "", 'File "/some/where/else/cli.py", line 3: 1/2 of ./here at https://a.org/b', 1.0, 1, None)
    assert said("export", run).endswith('File "cli.py", line 3: 1/2 of ./here at https://a.org/b')


def test_too_little_room_is_found_out_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 20_000_000_000}))
    with pytest.raises(StepFailedError, match="50 GB of disk needed, 20 GB free"):
        export.check_room("7b", tmp_path, None)


def test_the_command_prints_a_table_and_ends_with_json(
    tmp_path: Path, stub: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    stub()
    work = tmp_path / "work"
    assert main(["--variants", "dasheng-base", "--layers", "1", "--work", str(work)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["dasheng-base"]["bytes"] > 0
    assert any("verify: patches" in line and "3.0e-07" in line for line in lines)
    record = json.loads((tmp_path / "records" / "export.json").read_text("utf-8"))
    assert (record["schema_version"], record["variants"][0]["variant"]) == (1, "dasheng-base")
    assert not work.exists()


def test_what_is_kept_is_used_again(tmp_path: Path, stub: Callable[..., None]) -> None:
    stub(encoder=1)
    arguments = ["--variants", "dasheng-base", "--layers", "1", "--keep", str(tmp_path / "kept"), "--markdown"]
    assert main(arguments) == 1
    weights = tmp_path / "kept" / "dasheng-base-checkpoint" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    stub()
    assert main(arguments) == 0
    assert weights.stat().st_mtime_ns == written


def test_an_interruption_leaves_nothing(
    tmp_path: Path, stub: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    stub()
    monkeypatch.setattr(export, "_verify", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(["--variants", "dasheng-base", "--layers", "1", "--work", str(tmp_path / "work")])
    assert not list((tmp_path / "work").iterdir())
    assert not (tmp_path / "records").exists()


def test_the_7b_is_in_the_full_run_only() -> None:
    assert "7b" not in [variant.name for variant in choose(None, full=False)]
    assert [variant.name for variant in choose(None, full=True)] == [variant.name for variant in VARIANTS]
    assert [variant.name for variant in choose("7b,micro", full=False)] == ["micro", "7b"]


def test_an_unknown_variant_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="unknown variant '8b', expected some of micro,"):
        choose("8b", full=False)
    with pytest.raises(SystemExit) as stopped:
        main(["--variants", "8b"])
    assert stopped.value.code == 2
    assert "unknown variant" in capsys.readouterr().err


def test_the_worst_error_of_a_seam_is_shown_and_no_number_is_worst() -> None:
    seams = [{**SEAM, "error": error, "clip": clip} for clip, error in (("a", 1e-7), ("b", 2e-7))]
    assert worst(seams)["patches"]["clip"] == "b"
    assert worst([*seams, {**SEAM, "error": None, "clip": "c"}, seams[0]])["patches"]["clip"] == "c"


def full_rows() -> list[dict[str, Any]]:
    """Six variants with numbers as wide as they get."""
    cost = {"seconds": 1234.56, "peak_rss_bytes": 4 << 30, "peak_anonymous_bytes": 3 << 30}
    seams = [{**SEAM, "name": name, "unit": "tokens"} for name in ("log-mel", "greedy tokens")]
    rows = []
    for variant in VARIANTS:
        counts = dict(PARAMETERS[variant.published or "7b"])
        files = {"decoder.gguf": 4_700_000_000, "front_end.onnx": 1_000}
        made = {"bytes": 16_600_000_000}
        rows.append(
            asdict(
                Row(variant.name, True, variant.decoder, None, "fp32", made, counts, counts, {**cost, "steps": [STEP]},
                    files, {**cost, "seams": seams})
            )
        )  # fmt: skip
    return rows


def test_the_table_of_all_variants_fits_120_columns() -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(as_table(full_rows()))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 120
    assert "…" not in out.getvalue()
    assert any("7,615,616,512" in line for line in lines)  # not cut, not wrapped
    assert len(as_markdown(full_rows()).splitlines()) == len(table_lines(full_rows())) + 1


def test_the_page_says_where_it_comes_from_and_what_failed() -> None:
    rows = full_rows()
    rows[1] |= {"failure": "no space", "parameters": {"encoder": 5}}
    text = page({"date": "2026-11-23", "variants": rows}, "two cores")
    assert "```text\ntwo cores\n```" in text
    assert as_markdown(rows) in text
    assert "0.6b failed: no space" in text
    assert "| parameters as published | yes | NO | yes |" in text


def test_parameters_that_differ_are_shown_with_what_was_expected() -> None:
    row = full_rows()[1] | {"parameters": {"encoder": 5}}
    assert ["encoder parameters", "5, not 85757312"] in table_lines([row])
    wanted = Row("x", False, None, parameters={"a": 1}, expected_parameters={"b": 2}, verify={"seams": [SEAM]})
    assert len(failures(wanted)) == 2


def test_the_card_names_the_machine_and_not_its_owner() -> None:
    facts = machine.card()
    shown = machine.text(facts) + json.dumps(facts)
    assert facts["usable_cores"] >= 1
    assert "numpy" in facts["versions"]
    assert platform.node() not in shown or len(platform.node()) < 4
    assert str(REPOSITORY) not in shown
    assert str(Path.home()) not in shown


def test_a_folder_outside_of_git_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.git_state(tmp_path) == (None, False)
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert machine.git_state(REPOSITORY) == (None, False)


def test_the_machine_command_ends_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.main() == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == machine.card()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["micro", "dasheng-base"])
def test_the_real_exporter_passes(tmp_path: Path, name: str) -> None:
    variant = next(variant for variant in VARIANTS if variant.name == name)
    row = measure(variant, variant.decoder, tmp_path, layers=2 if variant.published else None)
    assert row.failure is None
