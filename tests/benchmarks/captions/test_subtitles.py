"""How subtitles are scored: by laws, and on a few scenes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.captions.subtitles import BEST, NEAR_S, labels_of, main, measure, score
from benchmarks.micro.scenes.synthesise import Event
from dasheng_edge.runtime.subtitles.cue import Cue

EVENTS = [Event("dog bark", 10.0, 14.0), Event("rain", 10.0, 20.0), Event("dog bark", 30.0, 31.0)]
MICRO = Path(__file__).resolve().parents[3] / "build" / "micro"


def test_labels_that_are_right_are_all_found_without_error() -> None:
    result = score([(event.start_s, event.kind) for event in EVENTS], EVENTS)
    assert (result["found"], result["repeated"], result["invented"], result["p90_s"]) == (3, 0, 0, 0.0)


def test_labels_are_right_once_repeated_near_a_sound_and_invented_elsewhere() -> None:
    shown = [(11.0, "dog bark"), (13.0, "dog bark"), (10.5, "siren"), (31.0 + NEAR_S + 1, "rain")]
    result = score(shown, EVENTS[:2])
    assert (result["found"], result["repeated"], result["invented"], result["median_s"]) == (1, 1, 2, 1.0)


def test_what_continues_is_no_label_of_its_own() -> None:
    cues = [Cue(1, 3, ("[dog barks]", "[rain falling]")), Cue(9, 11, ("[rain continues]",)), Cue(20, 22, ("a dog",))]
    assert labels_of(cues) == [(1, "dog bark"), (1, "rain")]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("espeak-ng") is None or not MICRO.exists(), reason="speaks in the scenes")
def test_a_few_scenes(tmp_path: Path) -> None:
    best = next(row for row in measure(MICRO, 12, 2)["ways"] if row["way"] == BEST.name)
    assert best["faults"] == 0
    assert best["found"] > best["sounds"] / 2


def test_a_bundle_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "--scenes", "1"]) == 1
    assert "subtitles: " in capsys.readouterr().err
