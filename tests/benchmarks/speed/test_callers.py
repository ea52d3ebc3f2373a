"""Many callers of one engine, in miniature."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.speed import callers
from benchmarks.synthetic.noise import noise, write_wav


def test_many_callers_are_measured(tiny_bundle: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", noise(1.0))
    out = tmp_path / "record.json"
    asked = [tiny_bundle, tmp_path, "--callers", 5, "--seconds", 0.5, "--threads", 1, "--out", out]
    assert callers.main([*map(str, asked)]) == 0
    record = json.loads(out.read_text("utf-8"))
    assert record["asked"] == record["equal"] == len(record["wait_s"]["values"]) >= 5
    assert record["different"] == record["errors"] == 0
    assert callers.spread(record) >= 1
