"""Several questions about a clip, in miniature."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.speed import questions


def test_questions_are_measured_in_both_orders(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    asked = [tiny_bundle, "--tokens", 3, "--seconds", 1, 2, "--threads", 1, "--out", out]
    assert questions.main([*map(str, asked)]) == 0
    record = json.loads(out.read_text("utf-8"))
    assert record["asked"] == record["equal"] == 16
    assert all(questions.share(record, f"{length} s, {order}") > 0 for length in (1, 2) for order in questions.ORDERS)
