"""What is foretold beside what is measured: parts of a record come together, and the worst of it is what counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.planning.check import MEMORY_WITHIN, joined, main, shown, summary


def measured(seconds: int, low: bool = False, **errors: float) -> dict[str, Any]:
    return {
        "bundle": "small/0.6b", "seconds": seconds, "threads": 1, "low": low,
        "measured": dict.fromkeys(errors, 1e8), "errors": errors,
        "predicted": {name: 1e8 * (1 + error) for name, error in errors.items()},
    }  # fmt: skip


def test_memory_and_speed_of_a_setting_become_one_row() -> None:
    rows = list[dict[str, Any]]()
    joined(rows, measured(5, peak=0.01) | {"status_under_limit": 0})
    joined(rows, measured(5, low=True, peak=-0.02))
    joined(rows, measured(5, caption=-0.3, encoder=0.1))
    assert [row["low"] for row in rows] == [True, False]
    assert rows[1]["errors"] == {"peak": 0.01, "caption": -0.3, "encoder": 0.1}
    assert rows[1]["status_under_limit"] == 0
    assert summary(rows) == {"memory": 0.02, "speed": 0.3, "killed": 0}
    joined(rows, measured(5, peak=0.02) | {"status_under_limit": 137})
    assert summary(rows)["killed"] == 1


def test_a_record_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [measured(10, peak=MEMORY_WITHIN) | {"status_under_limit": 0}, measured(30, low=True, caption=0.1)]
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"rows": rows}))
    assert main(["--show", str(path)]) == 0
    head, _, first, second = capsys.readouterr().out.splitlines()
    assert head.count("|") == first.count("|") == second.count("|")
    assert "105 / 100 (+5%)" in first
    assert "| runs |" in first
    assert "| low |" in second
    assert "110,000,000 / 100,000,000 (+10%)" not in shown(rows[:1])
