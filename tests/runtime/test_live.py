"""Audio that is encoded and prefilled while it comes, against the whole clip."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.front_end import RunningFeatures
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import AudioEmptyError, DecoderError, MemoryShortError
from dasheng_edge.runtime.text.answer import Answer
from dasheng_edge.runtime.text.context import BATCH, Context
from dasheng_edge.runtime.text.decoder import FIRST_CONTEXT, Decoder
from dasheng_edge.runtime.text.sequences import Sequences
from tests.fixtures.bundle_kinds import write_two_branch_bundle

RATE = 16000
CHUNK = 252 * 640  # samples of a chunk of the encoder


def blocks(waveform: np.ndarray, size: int = 1600) -> Iterator[np.ndarray]:
    for start in range(0, len(waveform), size):
        yield waveform[start : start + size]


def noise(samples: int, seed: int = 0, level: float = 0.3) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-level, level, samples).astype(np.float32)


@pytest.fixture(scope="module")
def audio(tiny_bundle: Path) -> AudioParts:
    return AudioParts.open(Bundle.open(tiny_bundle), EngineSettings())


def live_patches(audio: AudioParts, waveform: np.ndarray, size: int = 1600) -> tuple[np.ndarray, float]:
    running = RunningFeatures(audio.front_end, blocks(waveform, size))
    chunks = [chunk for features, first in running for chunk in audio.encoder.chunks(features, first)]
    return np.concatenate(chunks), running.deviation_db


@pytest.mark.parametrize(
    "samples", [1, 3039, 3200, CHUNK - 160, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK + 4321, 1129440]
)
def test_chunks_are_those_of_the_whole_clip(audio: AudioParts, samples: int) -> None:
    waveform = noise(samples)
    waveform[: min(400, samples)] *= 2  # the loudest comes first
    got, deviation_db = live_patches(audio, waveform)
    assert deviation_db == 0
    np.testing.assert_allclose(got, audio.encoder.patches(audio.front_end.features([waveform])), atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(samples=st.integers(1, 3 * CHUNK), size=st.integers(50, 40000), seed=st.integers(0, 99))
def test_block_sizes_do_not_matter(audio: AudioParts, samples: int, size: int, seed: int) -> None:
    waveform = noise(samples, seed)
    got, deviation_db = live_patches(audio, waveform, size)
    want = audio.encoder.patches(audio.front_end.features([waveform]))
    assert got.shape == want.shape
    assert deviation_db == 0  # noise has no bin that far below the loudest
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_two_branches(tiny_bundle: Path, tmp_path: Path) -> None:
    parts = AudioParts.open(Bundle.open(write_two_branch_bundle(tiny_bundle, tmp_path / "b")), EngineSettings())
    waveform = noise(2 * CHUNK + 999)
    got, _ = live_patches(parts, waveform)
    np.testing.assert_allclose(got, parts.encoder.patches(parts.front_end.features([waveform])), atol=1e-5)


def test_the_deviation_is_what_was_not_raised(audio: AudioParts) -> None:
    """A quiet tone, whose empty bins are raised to 120 dB below it, and something much louder in the next chunk."""
    waveform = np.concatenate([
        1e-3 * np.sin(np.arange(CHUNK + 8000, dtype=np.float32) * 0.2).astype(np.float32), noise(CHUNK, level=1.0),
    ])  # fmt: skip
    running = RunningFeatures(audio.front_end, blocks(waveform))
    got = np.concatenate([features.log_mel for features, _ in running], axis=1)
    want = audio.front_end.features([waveform]).log_mel
    below = want - got
    assert below.min() >= -1e-3
    assert running.deviation_db > 10
    assert below.max() == pytest.approx(running.deviation_db, abs=1e-3)


@pytest.mark.parametrize("seconds", [0.5, 9.0, 10.08, 25.0])
def test_a_live_caption_is_that_of_the_whole_clip(captioner: Captioner, seconds: float) -> None:
    waveform = noise(round(RATE * seconds))
    want = captioner.caption((waveform, RATE), max_new_tokens=8)
    got = captioner.stream((blocks(waveform), RATE), max_new_tokens=8, live=True).finish()
    assert got.tokens == want.tokens
    assert (got.audio_tokens, got.prompt_tokens, got.audio_s) == (want.audio_tokens, want.prompt_tokens, want.audio_s)
    assert got.warnings == want.warnings


def test_work_is_done_before_the_end_of_the_audio(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    prefilled, decoded, decode = list[int](), list[int](), Context.decode

    def counted(self: Context, rows: Any, *rest: Any) -> None:
        decoded.append(len(rows))
        decode(self, rows, *rest)

    def slow() -> Iterator[np.ndarray]:
        for block in blocks(noise(3 * CHUNK + 8000), 8000):
            prefilled.append(sum(decoded))
            yield block

    monkeypatch.setattr(Context, "decode", counted)
    caption = captioner.stream((slow(), RATE), max_new_tokens=4, live=True).finish()
    assert prefilled[-1] > caption.audio_tokens / 2
    assert caption.timings.after_audio_ms < caption.timings.first_token_ms


def test_time_that_is_spent_waiting_for_audio_is_reading(captioner: Captioner) -> None:
    def slow() -> Iterator[np.ndarray]:
        for block in blocks(noise(RATE), 8000):
            time.sleep(0.1)
            yield block

    timings = captioner.stream((slow(), RATE), max_new_tokens=2, live=True).finish().timings
    assert timings.audio_decode_ms >= 200
    assert timings.front_end_ms >= 0
    assert timings.first_token_ms >= 200


def test_a_live_clip_without_samples_is_an_error(captioner: Captioner) -> None:
    with pytest.raises(AudioEmptyError, match="holds no sample"):
        captioner.stream((iter([]), RATE), live=True).finish()
    assert captioner.caption((noise(RATE), RATE), max_new_tokens=2).tokens  # it goes on


def test_it_warns_of_a_clip_that_got_louder(captioner: Captioner) -> None:
    quiet = 1e-3 * np.sin(np.arange(CHUNK + 8000, dtype=np.float32) * 0.2).astype(np.float32)
    waveform = np.concatenate([quiet, noise(CHUNK, level=1.0)])
    caption = captioner.stream((blocks(waveform), RATE), max_new_tokens=2, live=True).finish()
    assert any("quiet bins of those lie up to" in warning for warning in caption.warnings)


# The decoder's side


def rows(decoder: Decoder, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (count, decoder.n_embd)).astype(np.float32)


def test_listening_is_prefilling(decoder: Decoder) -> None:
    one, two = rows(decoder, 20), rows(decoder, BATCH + 30, 1)
    decoder.prefill([(1, 2, 3), one, two, (4, 5)], reserve=20)
    want = list(decoder.generate(20))
    sequences, prefilled = Sequences(decoder, 2, keep=True), list[int]()
    segments: list[Any] = [one, two, (), (4, 5)]
    for lead in ((9, 9), (1, 2, 3), (1, 2, 3)):
        answer = Answer([lead], 20, Sampling())
        sequences.listen(answer, iter(segments))  # grows the context on the way
        assert (list(sequences.tokens(answer)) == want) is (lead == (1, 2, 3))
        assert answer.prefill_ms > 0
        prefilled.append(answer.prefilled - BATCH - 52)
    assert prefilled == [2, 3, 0]  # the lead was still there
    sequences.close()


def test_what_was_heard_so_far_is_dropped_with_an_error(decoder: Decoder) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield rows(decoder, 10)
        raise AudioEmptyError

    sequences = Sequences(decoder, 1, keep=True)
    with pytest.raises(AudioEmptyError):
        sequences.listen(Answer([(1, 2, 3)], 5, Sampling()), broken())
    assert len(sequences) == 0
    with pytest.raises(DecoderError, match="the request needs"):
        sequences.listen(Answer([(1, 2, 3)], decoder.context_length - 5, Sampling()), [rows(decoder, 10)])
    decoder.prefill([(1, 2, 3), rows(decoder, 4)], reserve=5)
    answer = Answer([(1, 2, 3)], 5, Sampling())
    sequences.listen(answer, [rows(decoder, 4)])
    assert list(sequences.tokens(answer)) == list(decoder.generate(5))
    sequences.close()


def test_a_context_that_cannot_grow_is_said_to_be_short_of_memory(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_context = decoder.new_context

    def scarce(n_ctx: int, **given: Any) -> Context:
        if n_ctx > FIRST_CONTEXT:
            raise MemoryShortError("no memory")
        return new_context(n_ctx, **given)

    monkeypatch.setattr(decoder, "new_context", scarce)
    sequences = Sequences(decoder, 1, keep=True)
    with pytest.raises(MemoryShortError, match="use shorter audio"):
        sequences.listen(Answer([(1, 2, 3)], 5, Sampling()), [rows(decoder, 300), rows(decoder, 300)])
    answer = Answer([(1, 2, 3)], 5, Sampling())
    sequences.listen(answer, [rows(decoder, 300)])
    assert len(list(sequences.tokens(answer))) == 5
    sequences.close()
