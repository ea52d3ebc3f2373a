"""The demo captions the same clips in every clone, or says which are missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import demo
from benchmarks.places import DATA


def test_recordings_that_are_not_there_are_named(tmp_path: Path) -> None:
    clips, missing = demo.recorded_clips(tmp_path)
    assert clips == []
    assert ["fsdd" in missing[0], "jfk.flac" in missing[1]] == [True, True]


@pytest.mark.skipif(not (DATA / "fsdd").is_dir(), reason="the recordings are not here")
def test_recordings_that_are_there_are_four() -> None:
    clips, missing = demo.recorded_clips(DATA)
    assert (len(clips), missing) == (4, [])


def test_the_demo_says_what_is_missing_and_counts_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = demo.evaluation_clips(demo.CLIPS)
    assert len(clips) == 47
    monkeypatch.setattr(demo, "evaluation_clips", lambda _: [clips[0], clips[-1]])
    monkeypatch.setattr(demo, "MAX_NEW_TOKENS", 2)
    assert demo.main([str(tiny_bundle), "--recordings", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "missing: 3 of spoken digits (fsdd/" in printed
    assert "2 of 2 clips are shown" in printed
    last = json.loads(printed.splitlines()[-1])
    assert (last["clips"], last["real_digit_error_rate"]) == (2, None)
