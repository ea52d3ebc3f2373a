"""A minute of listening, in which no time passes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.micro.scenes.signals import RATE
from benchmarks.speed import listening
from tests.runtime.live.test_listening import FakeClock


def test_listening_is_measured(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "SystemClock", FakeClock)
    monkeypatch.setattr(listening, "monotonic", iter(np.arange(0.0, 1e6, 0.6)).__next__)
    monkeypatch.setattr(listening, "LOUD_S", 10.0)
    monkeypatch.setattr(listening, "SILENT_S", 12.0)
    monkeypatch.setattr(listening, "SOUNDS", 4)
    out = tmp_path / "record.json"
    asked = [tiny_bundle, "--minutes", 0.3, "--tokens", 2, "--threads", 1, "--out", out]
    assert listening.main([*map(str, asked)]) == 0
    record = json.loads(out.read_text("utf-8"))
    assert record["events"] >= 1
    assert record["captions"] == record["shown"] + record["left_out"] >= 1
    assert record["wait_s"]["p50"] > 0
    assert 0 < record["silence_cores"] < record["cores"]
    assert "caption" in listening.section(record).text


def test_the_room_says_when_it_sounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "SOUNDS", 3)
    monkeypatch.setattr(listening, "LOUD_S", 20.0)
    room = listening.Room(seed=1)
    samples = np.concatenate(list(room.blocks(60)))
    sounding = np.zeros(len(samples), bool)
    for event in room.events:
        sounding[round(event.start_s * RATE) : round(event.end_s * RATE)] = True
    assert np.abs(samples[~sounding]).max() < 0.01 < np.abs(samples[sounding]).max()
    for start_s, end_s in room.silences:
        assert not sounding[round(start_s * RATE) : round(end_s * RATE)].any()
