"""Processes whose memory is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.records.record import BenchmarkError
from benchmarks.speed import memory


def test_a_failed_process_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"(?s)encode ended with status 1: .*BundleNotFoundError"):
        memory._process("encode", str(tmp_path / "nothing"), "1", "1")()
