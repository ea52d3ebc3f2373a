"""`bench --against`: the checkpoint of a bundle in PyTorch and transformers, on the same clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from dasheng_edge.runtime.cli import bench as bench_cli
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import CheckpointError
from dasheng_edge.runtime.speed import bench as bench_module
from dasheng_edge.runtime.speed.bench import BenchOptions, BenchReport, bench


def measured(bundle: Path, *, rounds: int = 2, checkpoint: Path) -> BenchReport:
    return bench(BenchOptions(str(bundle), (), rounds, 4, checkpoint, EngineSettings()))


def test_against_transformers(tiny_bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "_SYNTHETIC_HZ", 16_000)
    report = measured(tiny_bundle, checkpoint=tiny_checkpoint)
    other = report.against
    assert other is not None
    assert set(other.stages_ms) == {"front_end", "encoder", "projector", "prefill", "decode", "total"}
    assert {len(spread.values) for spread in other.stages_ms.values()} == {2}
    assert other.real_time_factor == pytest.approx(sum(other.stages_ms["total"].values) / 20_000)
    assert (other.decode_tokens_per_s is None) == (report.new_tokens == (1,))
    assert other.peak_rss_bytes is None or other.peak_rss_bytes > 50e6
    shown = "\n".join(bench_cli._bench_lines(report))
    assert f"transformers, {other.dtype}: real-time factor" in shown


def test_a_checkpoint_that_is_not_the_bundles(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty.*config\.json"):
        measured(tiny_bundle, rounds=1, checkpoint=tmp_path / "empty")
