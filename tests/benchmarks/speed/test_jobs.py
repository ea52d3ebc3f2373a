"""A folder job of two short recordings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.speed import jobs
from tests.fixtures.places import REPOSITORY


@pytest.mark.slow
def test_recordings_are_captioned_in_windows(tiny_bundle: Path, tmp_path: Path) -> None:
    out, clips = tmp_path / "record.json", REPOSITORY / "benchmarks/micro/clips"
    asked = [tiny_bundle, clips, "--lengths", 31, 46, "--threads", 1, "--tokens", 2, "--out", out]
    assert jobs.main([*map(str, asked)]) == 0
    record = json.loads(out.read_text("utf-8"))
    assert [job["windows"] for job in record["jobs"].values()] == [2, 3]
    assert jobs.growth(record) > 0.5
    assert jobs.real_time(record) > 0
