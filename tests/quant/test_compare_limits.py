"""What a comparison says about itself: whose figures it shows, which clips, and what limits them."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dasheng_edge.quant import bundle_compare as compare_module
from dasheng_edge.quant.bundle_compare import CompareOptions, compare
from dasheng_edge.quant.report.report import limits
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.progress import NoProgress
from tests.fixtures import fake_report
from tests.quant.test_bundle_compare import CLIPS, MICRO, NAMES, clips, one_turn, options

__all__ = ["clips", "one_turn"]  # fixtures
pytestmark = pytest.mark.skipif(not MICRO.is_dir(), reason="make build/micro makes it")


@pytest.mark.slow
def test_figures_belong_to_their_reference(tmp_path: Path) -> None:
    rows = [{"audio": str(CLIPS / NAMES[0]), "id": "a"}, {"audio": str(CLIPS / NAMES[1]), "id": "b", "prompt": ""}]
    path = tmp_path / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    first = compare(options(path, tmp_path / "out", "fp32/Q2_K"))
    (made,) = (tmp_path / "out" / "work" / "bundles").glob("*/manifest.json")
    swapped = CompareOptions(made.parent, (str(MICRO),), path, tmp_path / "out", max_new_tokens=24, threads=1)
    again = compare(swapped)
    (candidate,), (was,) = again.candidates, first.candidates
    assert candidate.both is not None
    assert was.both is not None
    # What F16 says about Q2_K's answers, and not about its own: nothing that the first run has measured.
    assert candidate.both.kl_mean.value > 1e-3
    assert candidate.both.kl_mean.value != was.both.kl_mean.value
    assert compare(replace(swapped, out=tmp_path / "fresh")).candidates[0].both == candidate.both
    # A prompt of nothing is one, and not the bundle's.
    assert [clip.prompt for clip in first.clips] == ["Write an audio caption describing the sound", ""]


@pytest.mark.slow
def test_a_name_that_is_no_utf8_does_not_lose_the_report(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    try:
        shutil.copyfile(CLIPS / NAMES[0], folder / os.fsdecode(b"\xe9.flac"))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    report = compare(options(folder, tmp_path / "out", "reference"))
    assert report.clips[0].clip == "\\xe9.flac"
    assert set(report.clips[0].texts) == {"reference", "recipe reference"}
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(("share", "said"), [(None, False), (0.05, False), (0.35, True)])
def test_a_busy_machine_is_told(share: float | None, said: bool) -> None:
    cost = fake_report.report().candidates[0].cost.model_copy(update={"others_share": share})
    told = " ".join(limits(Bundle.open(MICRO).decoder_facts, 30, (2, 1), costs=[cost]))
    assert ("Other programs used up to 35% of the machine" in told) == said


def test_intervals_of_many_clips_are_as_they_are_called() -> None:
    decoder = Bundle.open(MICRO).decoder_facts
    assert any("1 clip is few" in text for text in limits(decoder, 1, (2, 1)))
    assert any("29 clips are few" in text for text in limits(decoder, 29, (2, 1)))
    assert not any("too narrow" in text for text in limits(decoder, 30, (2, 1)))


def test_answers_are_as_long_as_the_references_where_nothing_is_said(clips: Path, tmp_path: Path) -> None:
    asked = replace(options(clips, tmp_path / "out", "fp32/Q8_0"), max_new_tokens=None)
    plan = compare_module._plan(asked, NoProgress())
    assert plan.limit == Bundle.open(MICRO).prompt_facts.max_new_tokens != 24
