"""Windows over long audio."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.runtime.audio.read import ReadAudio, read_audio
from dasheng_edge.runtime.audio.windows import MIN_HOP_S, spans
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.errors import AudioEmptyError, AudioError

RATE = 1000  # any will do


def clip(seconds: float) -> np.ndarray:
    return np.arange(round(seconds * RATE), dtype=np.float32) / 1e5


@given(
    seconds=st.floats(0.01, 40), window_s=st.floats(MIN_HOP_S, 12), hop=st.floats(0.1, 1.0), whole_s=st.floats(0, 20)
)
def test_every_sample_is_in_a_window_and_in_its_place(
    seconds: float, window_s: float, hop: float, whole_s: float
) -> None:
    waveform, hop_s = clip(seconds), max(MIN_HOP_S, hop * window_s)
    found = list(spans((waveform, RATE), RATE, whole_s=whole_s, window_s=window_s, hop_s=hop_s))
    covered = np.zeros(len(waveform), bool)
    for span in found:
        start, end = round(span.start_s * RATE), round(span.end_s * RATE)
        np.testing.assert_array_equal(span.audio.samples, waveform[start:end])
        covered[start:end] = True
    assert covered.all()
    assert found[-1].end_s == len(waveform) / RATE
    assert [span.whole for span in found] == [len(found) == 1] * len(found)
    if len(waveform) <= whole_s * RATE:
        assert len(found) == 1
    elif len(found) > 1:
        assert {round(span.end_s - span.start_s, 6) for span in found[:-1]} == {round(window_s * RATE) / RATE}
        starts = np.diff([round(span.start_s * RATE) for span in found])
        assert set(starts) == {round(hop_s * RATE)}


def test_no_more_is_read_than_a_window_needs() -> None:
    read = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield clip(1.0)

    found = spans((blocks(), RATE), RATE, window_s=5, hop_s=5)
    next(found)
    assert read <= 7
    next(found)
    assert read <= 12


@pytest.mark.parametrize(
    ("window_s", "hop_s"),
    [(30, 31), (30, 0), (0.2, 0.1), (float("nan"), 1), (float("inf"), 1), (30, float("nan")), (1e308, 1)],
)
def test_windows_that_make_no_sense(window_s: float, hop_s: float) -> None:
    with pytest.raises(AudioError, match=r"the window is .* expected a hop of at least 0\.5 s and no longer"):
        next(spans((clip(1), RATE), RATE, window_s=window_s, hop_s=hop_s))


def test_a_bundle_that_is_comfortable_with_anything_is_asked_about_the_whole() -> None:
    (span,) = spans((clip(1), RATE), RATE, whole_s=1e308)
    assert span.whole


def test_an_empty_clip_is_an_error() -> None:
    with pytest.raises(AudioEmptyError, match="holds no sample"):
        list(spans((clip(0), RATE), RATE))


def test_what_was_read_is_read_again_as_it_is() -> None:
    waveform = clip(1)
    (block,) = read_audio(ReadAudio(waveform, 5.0, "x"))
    assert block is waveform


def test_the_time_of_reading_goes_with_it(captioner: Captioner) -> None:
    waveform = np.random.default_rng(0).uniform(-0.4, 0.4, 16000).astype(np.float32)
    (span,) = spans((waveform, 16000), 16000, whole_s=10)
    caption = captioner.caption(ReadAudio(span.audio.samples, 1000.0, "x"), max_new_tokens=2)
    assert caption.timings.audio_decode_ms >= 1000
    assert caption.timings.front_end_ms < 1000
    assert caption.timings.first_token_ms >= 1000
    assert caption.tokens == captioner.caption((waveform, 16000), max_new_tokens=2).tokens


def test_a_clip_that_is_too_long_is_called_by_its_name(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioner.parts.decoder, "context_length", 60)
    (span,) = spans((np.zeros(160000, np.float32), 16000), 16000, whole_s=20)
    named = ReadAudio(span.audio.samples, 0.0, "long.wav")
    with pytest.raises(AudioError, match=r"long\.wav is longer than"):
        captioner.caption(named, max_new_tokens=2)
