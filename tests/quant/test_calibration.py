"""Clips as a quantization sees them: their features, and what the manifest says about them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.quant.calibration import Calibration, calibrate_on, fitting, golden_features
from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.golden import read_golden
from dasheng_edge.runtime.clips.clips import Clip, ClipSet
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import AudioError, AudioTooLongError, ClipsError, MemoryShortError
from dasheng_edge.runtime.parts import Parts
from tests.runtime.clips.test_clips import write_wave


@pytest.fixture(scope="module")
def parts(tiny_bundle: Path) -> AudioParts:
    return AudioParts.open(Bundle.open(tiny_bundle), EngineSettings())


def test_clips_become_features_and_facts(parts: AudioParts, tmp_path: Path) -> None:
    whole = write_wave(tmp_path / "a.wav", 1.0)
    part = whole[8000:12_000]
    clips = ClipSet("mine", (Clip("a", tmp_path / "a.wav"), Clip("b", tmp_path / "a.wav", 0.5, 0.25, "What?")))
    advanced: list[int] = []
    got = calibrate_on(clips, parts, advanced.append)
    assert advanced == [1, 1]
    assert got.prompts == (None, "What?")
    for features, samples in zip(got.features, (whole, part), strict=True):
        np.testing.assert_array_equal(features.log_mel, parts.front_end.features([samples]).log_mel)
    assert got.facts is not None
    assert (got.facts.name, got.facts.clips, got.facts.audio_s) == ("mine", 2, 1.25)
    assert got.facts.sha256 == hashlib.sha256(whole.tobytes() + part.tobytes()).hexdigest()
    few, alike = got.warnings  # both are white noise
    assert few.startswith("2 clips of 1 s in all are few")
    assert alike.startswith("100 % of the calibration clips sound like another")


def test_what_cannot_be_read_is_an_error(parts: AudioParts, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no audio")
    with pytest.raises(AudioError):
        calibrate_on(ClipSet("x", (Clip("a", tmp_path / "a.wav"),)), parts, lambda _: None)


def test_clips_that_cannot_be_read_are_left_out(
    parts: AudioParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.wav", "b.wav"):
        write_wave(tmp_path / name, 1.0, seed=ord(name[0]))
    half = (tmp_path / "b.wav").read_bytes()
    (tmp_path / "b.wav").write_bytes(half[: len(half) // 2])
    (tmp_path / "text.wav").write_text("no audio")
    paths = [tmp_path / name for name in ("gone.wav", "a.wav", "text.wav", "b.wav")]
    clips = tuple(Clip(path.stem, path, prompt=path.stem) for path in paths)
    row = Clip("row", tmp_path, error=ClipsError("x.jsonl, line 3: ..."))
    assert "line 3" in calibrate_on(ClipSet("x", (row, *clips)), parts, lambda _: None).warnings[0]
    got, advanced = calibrate_on(ClipSet("x", clips), parts, lambda _: None), list[int]()
    only = calibrate_on(ClipSet("x", clips[1::2]), parts, advanced.append)
    assert (got.facts, got.prompts, got.names) == (only.facts, ("a", "b"), ("a", "b"))
    gone, text, *rest = got.warnings
    assert (tuple(rest), "gone.wav" in gone, "text.wav" in text) == (only.warnings, True, True)
    assert rest[0].startswith("clip b: ")  # half of it is missing

    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Clip, "read", no_memory)
    with pytest.raises(MemoryShortError, match="clip a: there is not enough memory"):
        calibrate_on(ClipSet("x", clips[1:]), parts, lambda _: None)


def test_clips_that_do_not_fit_beside_their_prompt_are_left_out(tiny_bundle: Path) -> None:
    parts = Parts.open(Bundle.open(tiny_bundle), EngineSettings())
    spec = parts.audio.front_end.spec
    features = tuple(Features(np.zeros((64, 1), np.float32), None, spec.min_samples * count) for count in (1, 3))
    text = parts.prompts.build("What?").text_tokens
    calibration = Calibration(features, ("What?", "What?"), None, names=("short", "long"))
    assert len(fitting(calibration, parts, text + 3)[0]) == 2
    fit, (why,) = fitting(calibration, parts, text + 2)
    assert fit == [(features[0], "What?")]
    assert f"clip long and its prompt need {text + 3} positions" in str(why)
    (_, (why,)) = fitting(replace(calibration, prompts=("\ud800", "What?")), parts, 999)
    assert "clip short: the text" in str(why)
    with pytest.raises(AudioTooLongError, match="clip short"):
        fitting(calibration, parts, 0)
    parts.decoder.close()


def test_golden_clips_give_the_golden_features(parts: AudioParts, tiny_bundle: Path) -> None:
    golden = list(read_golden(Bundle.open(tiny_bundle)))
    got = golden_features(golden, parts)
    assert got.facts is None
    assert got.prompts == (None,) * len(golden)
    for features, clip in zip(got.features, golden, strict=True):
        np.testing.assert_allclose(features.log_mel, clip.log_mel, atol=0.01)
