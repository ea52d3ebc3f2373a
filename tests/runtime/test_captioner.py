"""The stitch: same audio, same caption, whatever way it comes in; one caption at a time."""

from __future__ import annotations

import dataclasses
import io
import math
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.caption import Timings
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.errors import (
    AudioDecodeError,
    AudioEmptyError,
    AudioTooLongError,
    BundleFileError,
    CaptionerBusyError,
    DeviceError,
    PromptError,
)
from tests.fixtures.audio_files import Format, sine, write_audio

RATE = 16_000
WAV = Format("wav", "wav", "pcm_s16le", RATE)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_audio(tmp_path / "clip.wav", sine(440, 1.5, RATE), WAV)


def tone(seconds: float) -> tuple[NDArray[np.float32], int]:
    return sine(440, seconds, RATE), RATE


def test_every_way_in_gives_the_same_caption(captioner: Captioner, clip: Path) -> None:
    data = clip.read_bytes()
    samples = np.frombuffer(data[-48_000:], np.int16)
    want = captioner.caption(clip)
    assert want.tokens
    for audio in (str(clip), data, io.BytesIO(data), (samples, RATE), (samples / 32768, RATE)):
        got = captioner.caption(audio)
        assert (got.text, got.tokens) == (want.text, want.tokens)


def test_what_a_caption_says(captioner: Captioner, clip: Path) -> None:
    caption = captioner.caption(clip, max_new_tokens=5)
    assert caption.audio_s == 1.5
    assert caption.audio_tokens == captioner.bundle.manifest.front_end.tokens_of(24_000)
    assert caption.prompt_tokens == 20
    assert (caption.finish_reason, len(caption.tokens)) == ("length", 5)
    assert caption.text == captioner.parts.decoder.detokenize(caption.tokens)
    assert caption.warnings == ("the answer was cut at 5 tokens; allow more (--max-new-tokens) to get all of it",)


def test_every_way_of_captioning_says_how_sure_the_model_was(captioner: Captioner, clip: Path) -> None:
    caption = captioner.caption(clip)
    assert caption.confidence is not None
    assert math.isfinite(caption.confidence)
    assert caption.confidence < 0
    others = [*captioner.caption_batch([clip, clip], batch=2), captioner.stream(clip, live=True).finish()]
    for other in others:
        assert other.confidence == pytest.approx(caption.confidence, abs=1e-3)


def test_different_audio_gives_different_captions(captioner: Captioner) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 24_000)
    assert captioner.caption(tone(1.5)).tokens != captioner.caption((noise, RATE)).tokens


def test_prompt_and_system_change_the_caption(captioner: Captioner, clip: Path) -> None:
    default = captioner.caption(clip)
    assert captioner.caption(clip, captioner.bundle.prompt_facts.prompt).tokens == default.tokens
    other = captioner.caption(clip, "Which labels describe the sound?")
    system = captioner.caption(clip, system="You are brief.")
    assert len({default.tokens, other.tokens, system.tokens}) == 3
    assert system.prompt_tokens > default.prompt_tokens


def test_sampling(captioner: Captioner, clip: Path) -> None:
    hot = Sampling(temperature=2.0, seed=1)
    one = captioner.caption(clip, sampling=hot)
    assert one.tokens == captioner.caption(clip, sampling=hot).tokens
    assert one.tokens != captioner.caption(clip).tokens


def test_generation_stops(captioner: Captioner, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = captioner.caption(clip).tokens
    end = want[6]
    monkeypatch.setattr(captioner.parts.decoder, "is_end", lambda token: token == end)
    caption = captioner.caption(clip)
    assert caption.finish_reason == "stop"
    assert caption.tokens == want[: want.index(end)]
    assert caption.timings.decode_tokens == len(caption.tokens)


def test_timings_add_up(captioner: Captioner, clip: Path) -> None:
    timings = captioner.caption(clip).timings
    stages = dataclasses.asdict(timings)
    assert all(value > 0 for value in stages.values())
    parts = ("audio_decode_ms", "front_end_ms", "encoder_ms", "projector_ms", "prefill_ms")
    assert sum(stages[part] for part in parts) <= timings.first_token_ms <= timings.total_ms
    assert timings.first_token_ms + timings.decode_ms == pytest.approx(timings.total_ms)
    assert timings.tokens_per_s == pytest.approx(1000 * timings.decode_tokens / timings.decode_ms)
    assert Timings(0, 0, 0, 0, 0, 0, 0, 0, 0, decode_tokens=0).tokens_per_s == 0


def test_a_stream_gives_the_caption_in_pieces(captioner: Captioner, clip: Path) -> None:
    stream = captioner.stream(clip)
    with pytest.raises(RuntimeError, match="only after the stream was read to its end"):
        _ = stream.caption
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.caption.text == captioner.caption(clip).text
    assert list(stream) == []
    assert stream.finish() == stream.caption


def test_one_caption_at_a_time(captioner: Captioner, clip: Path) -> None:
    stream = captioner.stream(clip)
    next(stream)
    with pytest.raises(CaptionerBusyError, match="busy with another caption"):
        captioner.caption(clip)
    stream.close()
    stream.close()
    assert captioner.caption(clip).tokens


def test_a_dropped_stream_frees_the_captioner(captioner: Captioner, clip: Path) -> None:
    for _ in captioner.stream(clip):
        break
    captioner.stream(clip)  # never started
    assert captioner.caption(clip).tokens


def test_two_threads_never_mix(captioner: Captioner, clip: Path) -> None:
    want = captioner.caption(clip).tokens
    outcomes: list[object] = []

    def outcome() -> object:
        try:
            return captioner.caption(clip).tokens
        except CaptionerBusyError as error:
            return type(error)

    def work() -> None:
        outcomes.extend(outcome() for _ in range(8))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(outcomes) <= {want, CaptionerBusyError}
    assert want in outcomes
    assert captioner.caption(clip).tokens == want


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": 5},
        {"prompt": b"what"},
        {"prompt": "\ud800"},
        {"system": 5},
        {"system": "\udcff"},
        *({"max_new_tokens": count} for count in (2.5, True, "3", float("nan"), 0, -1, 10**30, np.float32(2))),
        *({"sampling": value} for value in ({}, {"temperature": 1}, "greedy", 0.5, False)),
        *(
            {"sampling": Sampling().model_copy(update=update)}
            for update in (
                {"temperature": float("nan")},
                {"temperature": float("inf")},
                {"temperature": "hot"},
                {"top_k": -1},
                {"top_k": 2.5},
                {"top_p": 0},
                {"repetition_penalty": 0},
                {"seed": None},
                {"no_repeat_ngram_size": -1},
            )
        ),
    ],
)
def test_what_is_asked_is_checked(captioner: Captioner, clip: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(PromptError) as caught:
        captioner.caption(clip, **asked)
    assert not isinstance(caught.value.__context__, TypeError)
    str(caught.value).encode()
    assert captioner.caption(clip, max_new_tokens=np.int64(2)).tokens  # type: ignore[arg-type]  # a whole number


def test_errors_free_the_captioner(captioner: Captioner, clip: Path) -> None:
    with pytest.raises(AudioDecodeError):
        captioner.caption(b"no audio")
    with pytest.raises(AudioEmptyError):
        captioner.caption(b"")
    with pytest.raises(PromptError, match="max_new_tokens is 0; expected at least 1"):
        captioner.caption(clip, max_new_tokens=0)
    assert captioner.caption(clip).tokens


def test_closing(tiny_bundle: Path, clip: Path) -> None:
    with Captioner.open(tiny_bundle, threads=1, check_sha256=False) as captioner:
        stream = captioner.stream(clip)
        next(stream)
    captioner.close()
    assert list(stream) == []
    with pytest.raises(CaptionerBusyError, match="is closed; open a new one"):
        captioner.caption(clip)


def test_a_stream_that_was_closed_has_no_caption(tiny_bundle: Path, clip: Path) -> None:
    captioner = Captioner.open(tiny_bundle, threads=1, check_sha256=False)
    early, late, started = captioner.stream(clip), captioner.stream(clip), captioner.stream(clip)
    early.close()
    next(started)
    captioner.close()
    for stream in (early, late, started):
        with pytest.raises(CaptionerBusyError, match="ended before the caption was complete"):
            stream.finish()


def test_closing_when_another_thread_has_just_begun(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioner, "_streams", set())  # what close() saw before the other thread made its stream
    with captioner._lock, pytest.raises(CaptionerBusyError, match="while another thread is captioning"):
        captioner.close()
    assert captioner.caption(tone(1)).tokens  # it is still open


def test_closing_while_another_thread_captions(tiny_bundle: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()

    class SlowFile(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if size:
                reached.set()
                go_on.wait(20)
            return super().read(size)

    captioner = Captioner.open(tiny_bundle, threads=1)
    file = SlowFile(b"no audio")
    errors: list[BaseException] = []

    def work() -> None:
        try:
            captioner.caption(file)
        except AudioDecodeError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert reached.wait(20)
    with pytest.raises(CaptionerBusyError, match="while another thread is captioning"):
        captioner.close()
    go_on.set()
    thread.join()
    assert len(errors) == 1
    captioner.close()


@pytest.mark.parametrize("samples", [1, 1_600, 3_039, 3_040, 3_200])
def test_short_clips_get_one_token(captioner: Captioner, monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    monkeypatch.setattr(captioner, "ask_silence", True)
    caption = captioner.caption((np.zeros(samples, np.int16), RATE), max_new_tokens=1)
    assert caption.audio_tokens == 1
    assert caption.audio_s == samples / RATE


def endless() -> Iterator[bytes]:
    yield write_header()
    while True:
        yield bytes(32_000)


def write_header() -> bytes:
    """Of a WAV stream whose length is not known."""
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    return b"RIFF\xff\xff\xff\xffWAVE" + fmt + b"data\xff\xff\xff\xff"


class Endless(io.BytesIO):
    """A recorder that never stops."""

    def __init__(self) -> None:
        super().__init__()
        self.source = endless()
        self.seconds = 0

    def read(self, size: int | None = -1, /) -> bytes:
        if size == 0:
            return b""
        self.seconds += 1
        return next(self.source)[:size]

    def seekable(self) -> bool:
        return False


def test_too_long_audio_is_refused_without_reading_it_all(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioner.parts.decoder, "context_length", 100)
    monkeypatch.setattr(captioner, "ask_silence", True)
    recorder = Endless()
    with pytest.raises(AudioTooLongError, match=r"longer than 10\.2 s, which is what the decoder's 100 positions"):
        captioner.caption(recorder, max_new_tokens=30)
    assert recorder.seconds < 15
    limit = captioner.bundle.manifest.front_end.samples_for_tokens(50)
    assert captioner.caption((np.zeros(limit), RATE), max_new_tokens=30).audio_tokens == 50
    with pytest.raises(AudioTooLongError, match="the audio array is longer than"):
        captioner.caption((np.zeros(limit + 1), RATE), max_new_tokens=30)


def test_a_prompt_that_leaves_no_room(captioner: Captioner) -> None:
    with pytest.raises(PromptError, match="leave none for audio"):
        captioner.caption(tone(1), "long " * 5000)
    with pytest.raises(PromptError, match="leave none for audio"):
        captioner.caption(tone(1), max_new_tokens=5000)


def test_long_audio_comes_with_a_warning(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = captioner.bundle.manifest
    prompt = captioner.bundle.prompt_facts.model_copy(update={"comfortable_s": 1.0})
    bundle = dataclasses.replace(captioner.bundle, manifest=manifest.model_copy(update={"prompt": prompt}))
    monkeypatch.setattr(captioner, "bundle", bundle)
    assert len(captioner.caption(tone(1), max_new_tokens=1).warnings) == 1  # of the cut
    _, warning = captioner.caption(tone(2), max_new_tokens=1).warnings
    assert "2 s long" in warning


@pytest.mark.parametrize("samples", [21 * RATE, 322_560, 323_040])  # the last chunk has 21, 252 and 1 patches
def test_audio_of_several_chunks(captioner: Captioner, samples: int) -> None:
    caption = captioner.caption(tone(samples / RATE), max_new_tokens=4)
    assert caption.audio_tokens == captioner.bundle.manifest.front_end.tokens_of(samples)
    stages = dataclasses.asdict(caption.timings)
    parts = ("audio_decode_ms", "front_end_ms", "encoder_ms", "projector_ms", "prefill_ms")
    assert sum(stages[part] for part in parts) <= stages["first_token_ms"]


def test_bad_bundles_and_devices_are_refused(bundle_copy: Path) -> None:
    with pytest.raises(DeviceError, match="expected one of cpu, cuda"):
        Captioner.open(bundle_copy, device="tpu")  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="expected 1 to"):
        Captioner.open(bundle_copy, threads=0)
    path = Bundle.open(bundle_copy).path("encoder.onnx")
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(BundleFileError, match="was altered"):
        Captioner.open(bundle_copy)
    with pytest.raises(BundleFileError, match="no graph that a bundle may hold"):
        Captioner.open(bundle_copy, check_sha256=False)
