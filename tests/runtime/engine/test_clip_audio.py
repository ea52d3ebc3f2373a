"""A clip in which there is nothing is not heard, and nothing is made up about it; any other is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dasheng_edge.runtime.audio.encoder import Encoder
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine.clip_audio import ClipAudio
from dasheng_edge.runtime.engine.engine import Engine
from dasheng_edge.runtime.engine.job import CaptionScheduler
from dasheng_edge.runtime.engine.request import Request
from dasheng_edge.runtime.errors import AudioTooLongError
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.text.sequences import Sequences

RATE = 16_000
CLIP = np.random.default_rng(0).uniform(-0.4, 0.4, 5 * RATE).astype(np.float32)
DITHER = (np.random.default_rng(1).integers(-1, 2, 3 * RATE) / 32768).astype(np.float32) * 0.9

NOTHING = {
    "digital zero": np.zeros(3 * RATE, np.float32),
    "one sample": np.zeros(1, np.float32),
    "10 ms": np.zeros(160, np.float32),
    "whole numbers": np.zeros(70 * RATE, np.int16),
    "an offset": np.full(2 * RATE, 0.3, np.float32),
    "dither": DITHER,
    "dither on an offset": DITHER + np.float32(0.05),
}
WAYS: dict[str, Callable[[Captioner, Any], Caption]] = {
    "caption": lambda captioner, clip: captioner.caption(clip),
    "live": lambda captioner, clip: captioner.stream(clip, live=True).finish(),
    "batch": lambda captioner, clip: captioner.caption_batch([clip, clip], batch=2)[1],
    "questions": lambda captioner, clip: captioner.ask(clip, ["Why?", "Where?"])["Where?"],
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("nothing", NOTHING.values(), ids=NOTHING)
def test_nothing_is_said_about_nothing(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch, nothing: np.ndarray, way: Callable[..., Caption]
) -> None:
    def works(*_: object, **__: object) -> None:
        raise AssertionError

    for part, names in ((Encoder, ("stream", "together")), (Decoder, ("prefill",)), (Sequences, ("begin", "listen"))):
        for name in names:
            monkeypatch.setattr(part, name, works)
    caption = way(captioner, (nothing, RATE))
    assert (caption.text, caption.tokens, caption.reason) == ("", (), "silence")
    assert (caption.finish_reason, caption.confidence, caption.audio_tokens) == ("stop", None, 0)
    assert caption.audio_s == pytest.approx(len(nothing) / RATE)
    assert caption.timings.encoder_ms == caption.timings.prefill_ms == caption.timings.decode_ms == 0
    assert caption.timings.total_ms > 0
    assert caption.timings.tokens_per_s == 0


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_it_is_asked_all_the_same_where_that_is_wanted(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch, way: Callable[..., Caption]
) -> None:
    monkeypatch.setattr(captioner, "ask_silence", True)
    caption = way(captioner, (NOTHING["digital zero"], RATE))
    assert (caption.reason, caption.audio_tokens) == (None, 15)
    assert caption.tokens


def test_an_engine_does_the_same(captioner: Captioner) -> None:
    engine = Engine(captioner.bundle, captioner.parts, batch=2)
    engine.parts.decoder.close, close = (lambda: None), engine.parts.decoder.close  # type: ignore[method-assign]
    try:
        first, clip = engine.submit((NOTHING["dither"], RATE)), engine.submit((CLIP, RATE), max_new_tokens=2)
        assert (first.result(60).reason, clip.result(60).reason) == ("silence", None)
        engine.ask_silence = True
        assert engine.submit((NOTHING["dither"], RATE), max_new_tokens=2).result(60).reason is None
    finally:
        engine.close()
        engine.parts.decoder.close = close  # type: ignore[method-assign]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seconds=st.floats(0.1, 70), at=st.floats(0, 1), level_db=st.floats(-60, 0), block=st.integers(100, 40_000),
    ahead=st.booleans(),
)  # fmt: skip
def test_a_sound_anywhere_is_heard(
    captioner: Captioner, seconds: float, at: float, level_db: float, block: int, ahead: bool
) -> None:
    """A beep of 100 ms in dither, whatever blocks it comes in; what was read to find it is not lost."""
    samples = round(seconds * RATE)
    waveform = np.resize(DITHER, samples)
    start = round(at * (samples - 1600))
    beep = np.sin(np.arange(1600, dtype=np.float32) * 0.3) * np.float32(10 ** (level_db / 20))
    waveform[start : start + 1600] += beep
    audio = ClipAudio(captioner.parts.audio, ((waveform[i : i + block] for i in range(0, samples, block)), RATE))
    audio.allow(samples, "")
    if ahead:
        audio.read_ahead()
    assert not audio.silent()
    np.testing.assert_array_equal(np.concatenate(list(audio._blocks)), waveform)


def test_silence_without_end_is_refused_as_any_audio_is(captioner: Captioner) -> None:
    audio = ClipAudio(captioner.parts.audio, ((np.zeros(RATE, np.float32) for _ in iter(int, 1)), RATE))
    audio.allow(10 * RATE, "too long")
    with pytest.raises(AudioTooLongError, match="too long"):
        audio.silent()


def test_changes_are_those_of_the_clip_however_it_is_heard(captioner: Captioner) -> None:
    clip = np.concatenate([0.02 * CLIP[: 2 * RATE], CLIP, 0.02 * CLIP[: 7 * RATE // 2]])  # more than a chunk
    asked = replace(Request((clip, RATE), None, None, 2, Sampling()), changes=True)
    alone, others = captioner.caption_each([(clip, RATE)] * 2, max_new_tokens=2, changes=True)
    assert isinstance(alone, Caption)
    assert alone == replace(cast("Caption", others), timings=alone.timings)
    assert pytest.approx(max(alone.changes, key=lambda change: change.strength).time_s, abs=0.1) == 2.0
    scheduler = CaptionScheduler(captioner.bundle, captioner.parts, 2, beside=True)
    jobs = [scheduler.job(asked), scheduler.job(replace(asked, changes=False))]
    for job in jobs:
        scheduler.add(job)
    while len(scheduler):
        scheduler.advance(lambda _: None)
    scheduler.close()
    watched, unwatched = (cast("Caption", job.result()) for job in jobs)
    assert [change.time_s for change in watched.changes] == [change.time_s for change in alone.changes]
    assert unwatched.changes == captioner.caption((clip, RATE), max_new_tokens=2).changes == ()
