"""The GPU benchmark: its page shows what was measured and what failed, and a rehearsal on the CPU runs to its end."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.gpu import correctness
from benchmarks.gpu.__main__ import main, run_stages
from benchmarks.gpu.assemble import SCALES, Weights, spread
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.page import encoder_flop, headline, page, shares
from tests.fixtures.speed_records import record

SHAPE = {"embed_dim": 1280, "depth": 32, "decoder": {"rows": 1000, "hidden": 500}}


def a_record(**stages: Any) -> dict[str, Any]:
    """A second for a token of 2 GB, at 4 GB/s; 10 ms for the encoder of 30 s, whose floor is 3 ms."""
    flop_per_s = encoder_flop(SHAPE) / 0.003
    floors = {"copy_bytes_per_s": 4e9, "flop_per_s": flop_per_s}
    warm = {"first_token_ms": 31.25, "encoder_ms": 10.0}
    ours = {
        "status": 0, "decoder_bytes": 2_001_000_000, "first_token_30s": {"warm": warm, "new_length": warm},
        "caption": {"ms_per_token": 1000.0}, "batch_8": {"clips_per_s": 8.25, "busy_share": 0.5},
        "batch_128": {"error": "DecoderError: too many"},
        "first_batch": {"first_s": 0.75, "again_s": 0.5}, "open_s": 4.0,
    }  # fmt: skip
    found = {"floors": {"status": 0, "card": "Testium X", "shape": SHAPE, "floors": floors}, "F16": ours, **stages}
    return record("gpu", "7b", device="cuda", stages=found)


def test_shares_are_floors_by_what_was_measured() -> None:
    assert shares(a_record()) == {"encoder": pytest.approx(0.3), "F16": pytest.approx(0.5)}


def test_the_floor_of_the_encoder_counts_every_matrix_once() -> None:
    # 32 blocks of 12 x 1280^2 weights are 629 million; a clip of 30 s has 750 patches.
    assert encoder_flop(SHAPE) == pytest.approx(2 * 750 * 629_145_600, rel=0.05)


def test_a_page_shows_figures_targets_and_failures() -> None:
    text = page(a_record(torch={"status": "ended after 120 s"}))
    for part in (
        "7b on Testium X",
        "| 30 s | <= 33 | 31.2 |",
        "| 8 | >= 8 | 8.25 | 50 |",
        "| encoder | >= 30 | 30.0 |",
        "| F16 | 0.75 | 0.50 | 4.0 |",
    ):
        assert part in text
    assert "- F16, batch_128: DecoderError: too many" in text
    assert "- torch: ended after 120 s" in text


def test_a_record_without_figures_has_a_page() -> None:
    empty = record("gpu", "7b", device="cuda", stages={"floors": {"status": 1}})
    assert headline(empty) == {}
    assert "- floors: 1" in page(empty)


def test_a_figure_that_fails_costs_no_other(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "stage.json")
    findings.attempt("bad", lambda: 1 / 0)
    findings.attempt("good", lambda: 2)
    assert json.loads(findings.path.read_text()) == {
        "bad": {"error": "ZeroDivisionError: division by zero"}, "good": 2
    }  # fmt: skip


def test_a_stage_that_hangs_is_ended_and_keeps_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "floors.json").write_text('{"card": "Testium X"}')
    lines = {
        "floors": [sys.executable, "-c", "import time; time.sleep(60)"],
        "torch": [sys.executable, "-c", "raise SystemExit(3)"],
    }
    found = run_stages(lines, tmp_path, 0.5, tmp_path / "partial")
    assert found["floors"]["card"] == "Testium X"
    assert found["floors"]["status"].startswith("ended after")
    assert json.loads((tmp_path / "partial").read_text())["stages"].keys() == {"floors", "torch"}


def kill_itself(number: signal.Signals) -> tuple[str, ...]:
    return sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(number)})"


@pytest.mark.parametrize("number", [signal.SIGILL, signal.SIGSEGV, signal.SIGKILL])
def test_a_signal_that_ends_a_process_is_named(tmp_path: Path, number: signal.Signals) -> None:
    said = correctness.run(*kill_itself(number))
    assert said["status"] == f"ended by {number.name}"
    found = run_stages({"floors": kill_itself(number)}, tmp_path, 60, tmp_path / "partial")
    assert found["floors"]["status"] == f"ended by {number.name}"


def test_a_precision_that_is_ended_costs_its_own_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    micro, clips, work = tmp_path / "micro", tmp_path / "clips", tmp_path / "work"

    def run(*line: str) -> dict[str, Any]:
        if "quantize" in line:
            Path(line[-1]).mkdir()
        if "--captions" in line and (name := line[-1]) != "fp16":
            facts = {f"{what}_{name}": {"equal": 8, "of": 8} for what in ("captions", "batch")}
            Path(line[-4 - 1]).write_text(json.dumps(facts))
        ended = "micro-fp16" in " ".join(line) and "quantize" not in line
        return {"status": "ended by SIGILL" if ended else 0, "seconds": 0.1, "stdout": "", "stderr": "no kernel"}

    micro.mkdir()
    clips.mkdir()
    monkeypatch.setattr(correctness, "run", run)
    out = tmp_path / "correctness.json"
    assert correctness.main([*map(str, (micro, clips, work, out)), "--device", "cpu"]) == 0
    found = json.loads(out.read_text())
    assert found["captions_fp16"] == found["batch_fp16"] == {"error": "ended by SIGILL: no kernel"}
    assert found["captions_int8"] == found["batch_fp32"] == {"equal": 8, "of": 8}
    text = page(a_record(correctness={"status": 0, **found}))
    assert "| fp16 | ended by SIGILL | ended by SIGILL: no kernel |" in text
    assert "| int8 | passed | 8 of 8 | 8 of 8 |" in text


@pytest.mark.parametrize("shape", [(64, 64), (7, 300), (256,), (1, 64, 1, 252)])
def test_random_weights_have_the_spread_that_is_asked_for(shape: tuple[int, ...]) -> None:
    mean, std = spread("blocks.0.mlp.fc1.weight", shape, 32, inputs_first=len(shape) == 2)
    drawn = Weights().values(1 << 16, mean, std, "float32", (1 << 24) - 100)
    assert drawn.size == 1 << 16
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.02 * std)
    assert float(drawn.std()) == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize("kind", SCALES)
def test_quantized_weights_are_scaled_by_their_blocks(kind: str) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    weights = Weights()
    tile = weights.quantized()[kind][:512]

    def values(blocks: NDArray[np.uint8]) -> Any:
        return dequantize(blocks, GGMLQuantizationType[kind])

    assert float(values(tile).std()) == pytest.approx(1, rel=0.02)
    assert float(values(weights.blocks(kind, 0.25, tile)).std()) == pytest.approx(0.25, rel=0.02)


@pytest.mark.slow
def test_a_rehearsal_on_the_cpu_finds_figures_in_every_stage(tmp_path: Path) -> None:
    out = tmp_path / "tiny.json"
    arguments = [
        "--device", "cpu", "--shape", "tiny", "--skeleton", str(tmp_path / "skeleton"), "--work", str(tmp_path / "w"),
        "--batches", "1,2", "--torch-batches", "1", "--tokens", "2", "--lengths", "2,30",
        "--stages", "skeleton,assemble,floors,F16,Q4_K_M,torch", "--out", str(out),
    ]  # fmt: skip
    assert main(arguments) == 0
    stages = json.loads(out.read_text())["stages"]
    assert [stages[name]["status"] for name in ("skeleton", "assemble", "floors", "F16", "Q4_K_M", "torch")] == [0] * 6
    for kind in ("F16", "Q4_K_M"):
        assert stages[kind]["batch_2"]["tokens"] == [2, 2]
    assert "What failed" not in out.with_suffix(".md").read_text()
