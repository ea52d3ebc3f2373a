"""Processes whose memory is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.records.record import BenchmarkError
from benchmarks.speed import memory
from tests.fixtures.speed_records import five, memory_record


def test_a_failed_process_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"(?s)encode ended with status 1: .*BundleNotFoundError"):
        memory._process("encode", str(tmp_path / "nothing"), "1", "1")()


def test_little_memory_has_a_row_where_it_was_measured() -> None:
    before = memory_record()
    record = {**before, memory.LOW: {**before[memory.CAPTION], "peak_rss_bytes": five(515e6)}}
    assert memory.headline(record)["low_memory_peak_rss_mb"] == 515.0
    assert "| caption of 10 s, low memory | 515 |" in memory.section(record).text
    assert "low" not in memory.section(before).text
    assert "low_memory_peak_rss_mb" not in memory.headline(before)
