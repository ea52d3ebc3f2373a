"""Scenes: a pure function of the seed, with captions that name exactly what is heard."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from benchmarks.micro.scenes import captions, speech, synthesise
from benchmarks.micro.scenes.captions import Heard
from benchmarks.micro.scenes.clip_files import Clip, write_clips
from benchmarks.micro.scenes.signals import RATE, band, decay, filtered, loudness, noise, sine
from benchmarks.micro.scenes.sounds import FAMILIES, KINDS, MAKERS, SPEECH, shortest_s
from benchmarks.micro.scenes.speech import EspeakError, Utterance
from benchmarks.micro.scenes.synthesise import Event, Plan, make_scene, named_kinds, overlapping, plan_scene

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    return [plan_scene(seed) for seed in range(600)]


@pytest.fixture
def silent_plans(plans: list[Plan]) -> list[Plan]:
    """Plans without speech: they render without espeak-ng."""
    return [plan for plan in plans if plan.language == "none"]


def heard_kinds(plan: Plan) -> frozenset[str]:
    return frozenset(event.kind for event in plan.events)


def references(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "references.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_kind_and_language_occurs(plans: list[Plan]) -> None:
    assert len(KINDS) == 26
    assert Counter(event.kind for plan in plans for event in plan.events).keys() == set(KINDS)
    assert {plan.language for plan in plans} == {*speech.LANGUAGES, "none"}
    spoken = np.mean([plan.language != "none" for plan in plans])
    assert 0.2 < spoken < 0.4


def test_lengths_and_counts_are_as_promised(plans: list[Plan]) -> None:
    seconds = np.array([plan.samples / RATE for plan in plans])
    assert seconds.min() >= 1
    assert seconds.max() <= 30
    assert 5.5 < seconds.mean() < 7.5
    assert seconds.max() > 15
    counts = Counter(len(plan.events) for plan in plans)
    assert set(counts) == {1, 2, 3}
    assert min(plan.samples for plan in plans if len(plan.events) == 3) >= 3 * RATE


def test_every_phrasing_names_exactly_what_is_heard(plans: list[Plan]) -> None:
    for plan in plans:
        assert len(set(plan.captions)) == len(plan.captions) >= 3
        for text in (*plan.captions, plan.labels):
            assert named_kinds(text) == heard_kinds(plan), text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("choice", [0, 1])
def test_each_wording_names_its_kind_alone(kind: str, choice: int) -> None:
    event = Heard(kind, overlaps=False, far=True, woman=bool(choice), language="French")
    for participle in (False, True):
        assert named_kinds(captions.clause(event, choice, participle, distance=True)) == {kind}
    assert named_kinds(kind) == {kind}


def test_named_kinds_ignores_what_it_does_not_know() -> None:
    assert named_kinds("") == frozenset()
    assert named_kinds("a zebra training <|im_end|> \n\x00 windows 4 0 7") == frozenset()
    assert named_kinds("Rain... RAIN! A DOG, and a dog") == {"rain", "dog bark"}


def test_the_canonical_caption_follows_from_kinds_order_and_overlap(plans: list[Plan]) -> None:
    for plan in plans:
        joints = [overlapping(a, b) for a, b in zip(plan.events, plan.events[1:], strict=False)]
        assert (" while " in plan.captions[0]) == any(joints)
        assert plan.captions[0].count("followed by") == joints.count(False)
        starts = [event.start_s for event in plan.events]
        assert starts == sorted(starts)
    rain, dog, man = Heard("rain", False), Heard("dog bark", True), Heard(SPEECH, False, language="German")
    assert captions.canonical([rain, dog, man]) == "rain falls while a dog barks, followed by a man speaking German"
    drums = Heard("drums", True)
    assert captions.canonical([rain, dog, drums]) == "rain falls while a dog barks and drums play"


def test_overlap_is_clear_or_absent(plans: list[Plan]) -> None:
    for plan in plans:
        for first, second in zip(plan.events, plan.events[1:], strict=False):
            shared = min(first.end_s, second.end_s) - max(first.start_s, second.start_s)
            part = shared / min(first.end_s - first.start_s, second.end_s - second.start_s)
            assert part < 0.05 or part > 0.65
            assert second.start_s == first.start_s or second.start_s - first.start_s >= 0.49
    assert overlapping(Event("rain", 0, 4), Event("birds", 1, 3))
    assert not overlapping(Event("rain", 0, 4), Event("birds", 3, 6))


def test_events_are_long_enough_different_and_do_not_mask_each_other(plans: list[Plan]) -> None:
    for plan in plans:
        kinds = heard_kinds(plan)
        assert len(kinds) == len(plan.events)
        assert all(len(kinds & family) <= 1 for family in FAMILIES)
        assert max(plan.levels_db) > -6
        for event in plan.events:
            assert 0 <= event.start_s < event.end_s <= plan.samples / RATE + 1e-3
            assert event.end_s - event.start_s >= min(shortest_s(event.kind), plan.samples / RATE) - 2e-3


def test_far_is_said_only_of_what_is_far(plans: list[Plan]) -> None:
    said = [plan for plan in plans if any("in the distance" in text for text in plan.captions)]
    assert said
    assert all(any(plan.far) for plan in said)


def test_every_solo_caption_has_six_templates() -> None:
    texts = captions.phrasings(np.random.default_rng(1), [Heard("rain", False)], count=30)
    assert len(texts) >= 6


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("seconds", [0.6, 2.3])
def test_every_maker_fills_its_samples(kind: str, seconds: float) -> None:
    n = int(seconds * RATE)
    first, again, other = (MAKERS[kind](np.random.default_rng(seed), n) for seed in (1, 1, 2))
    assert first.dtype == np.float32
    assert first.shape == (n,)
    assert np.isfinite(first).all()
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert loudness(first[: RATE // 2]) > 0.03 * loudness(first)  # it begins at once


def test_a_scene_is_a_pure_function_of_its_seed(silent_plans: list[Plan]) -> None:
    for plan in silent_plans[:5]:
        scene, again = make_scene(plan.seed), synthesise.render_scene(plan)
        assert np.array_equal(scene.waveform, again.waveform)
        assert scene.captions == again.captions
        assert scene.waveform.dtype == np.float32
        assert scene.waveform.shape == (plan.samples,)
        assert -20.01 <= 20 * np.log10(np.abs(scene.waveform).max()) <= -0.99


def test_slots_that_turn_out_too_short_become_one_event() -> None:
    assert len(plan_scene(1_000_625).events) == 1  # its cuts leave a slot below 0.6 s


@pytest.mark.parametrize("seconds", [1.0, 7.3, 30.0])
def test_the_length_can_be_given(seconds: float) -> None:
    plan = plan_scene(5, duration_s=seconds)
    assert plan.samples == round(seconds * RATE)


@pytest.mark.parametrize("seconds", [0.99, 30.01, float("nan")])
def test_a_length_out_of_range_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="expected 1 to 30 s"):
        plan_scene(5, duration_s=seconds)


def test_a_wind_howls_low_and_crickets_sing_high() -> None:
    def centroid_hz(kind: str) -> float:
        power = np.abs(np.fft.rfft(MAKERS[kind](np.random.default_rng(3), 2 * RATE))) ** 2
        return float((np.linspace(0, RATE / 2, len(power)) * power).sum() / power.sum())

    assert centroid_hz("engine") < 500
    assert centroid_hz("wind") < 1_000
    assert 3_900 < centroid_hz("static") < 4_100
    assert 4_000 < centroid_hz("crickets") < 6_000


def test_the_building_blocks_obey_their_formulas() -> None:
    fade = decay(RATE, 0.5)
    assert 20 * np.log10(fade[RATE // 2] / fade[0]) == pytest.approx(-60, abs=0.1)
    tone = sine(1_000, RATE)
    spectrum = np.abs(np.fft.rfft(tone))
    assert spectrum.argmax() == 1_000
    assert np.delete(spectrum, 1_000).max() < 1e-3 * spectrum.max()
    hiss = filtered(noise(np.random.default_rng(0), RATE), band(1_000, 2_000))
    power = np.abs(np.fft.rfft(hiss)) ** 2
    assert power[900:2_200].sum() > 0.8 * power.sum()
    assert loudness(tone) == pytest.approx(0.5**0.5, rel=0.01)


@needs_espeak
def test_a_voice_speaks_for_as_long_as_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "CACHE", tmp_path / "cache")
    talks = [speech.talk(np.random.default_rng(4), 3 * RATE, "Spanish", True) for _ in range(2)]
    assert np.array_equal(talks[0], talks[1])
    assert talks[0].shape == (3 * RATE,)
    cached = list((tmp_path / "cache").iterdir())
    assert cached
    assert {path.suffix for path in cached} == {".wav"}


@needs_espeak
def test_a_voice_that_does_not_exist_is_named() -> None:
    with pytest.raises(EspeakError, match="could not say 'hello' with the voice 'klingon-xx'"):
        speech.speak(Utterance("hello", "klingon-xx", 150, 50))


def test_without_espeak_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "PROGRAM", "espeak-ng-that-is-not-there")
    with pytest.raises(EspeakError, match=r"apt install espeak-ng.*brew install espeak-ng"):
        speech.speak(Utterance("hello", "en-gb", 150, 50))


def test_sentences_are_many_and_some_are_digits() -> None:
    counts = {language: speech.sentence_count(language) for language in speech.LANGUAGES}
    assert min(counts.values()) >= 30
    assert counts["English"] == 70
    digits = speech.sentence("English", 69).split(", ")
    assert 3 <= len(digits) <= 6
    assert set(digits) <= set(speech.DIGIT_WORDS)
    assert speech.trimmed(np.zeros(10, np.float32)).size == 0


def test_the_evaluation_scenes_hold_every_kind() -> None:
    plans = synthesise.evaluation_plans()
    assert len(plans) + synthesise.EVALUATION_DIGITS <= 60
    assert synthesise.EVALUATION_DIGITS >= 8
    assert frozenset.union(*map(heard_kinds, plans)) == set(KINDS)
    assert {plan.language for plan in plans} == {*speech.LANGUAGES, "none"}
    assert max(plan.samples for plan in plans) <= 20 * RATE


def test_clips_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    wave = (0.5 * sine(440, RATE)).astype(np.float32)
    size = write_clips(tmp_path / "clips", [Clip("tone", wave, {"labels": "alarm"})])
    assert size > 1_000
    with av.open(str(tmp_path / "clips" / "tone.flac")) as container:
        read = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert np.abs(read / 32_768 - wave).max() <= 1 / 65_536 + 1e-6
    (row,) = references(tmp_path / "clips")
    assert row == {"file": "tone.flac", "seconds": 1.0, "labels": "alarm"}
    with pytest.raises(FileExistsError, match="remove it, or pass another folder"):
        write_clips(tmp_path / "clips", [])
    with pytest.raises(AttributeError):
        write_clips(tmp_path / "broken", [None])  # type: ignore[list-item]
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]


@needs_espeak
def test_the_command_writes_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert synthesise.main(["--seed", "3", "--count", "2", "--out", str(tmp_path / "scenes")]) == 0
    assert "2 clips" in capsys.readouterr().out
    rows = references(tmp_path / "scenes")
    assert [row["captions"] for row in rows] == [list(plan_scene(seed).captions) for seed in (3, 4)]
    assert {path.name for path in (tmp_path / "scenes").glob("*.flac")} == {row["file"] for row in rows}


@needs_espeak
def test_the_command_writes_the_evaluation_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesise, "evaluation_plans", list)
    monkeypatch.setattr(synthesise, "EVALUATION_DIGITS", 2)
    assert synthesise.main(["--evaluation", "--out", str(tmp_path / "clips")]) == 0
    rows = references(tmp_path / "clips")
    assert [row["digits"].replace(" ", "").isdigit() for row in rows] == [True, True]
    assert all(named_kinds(row["captions"][0]) == {SPEECH} for row in rows)


def test_synthesis_does_not_load_torch() -> None:
    code = "import sys, benchmarks.micro.scenes.synthesise; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[4]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
