"""Clips that are decoded together, against one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine.clip_audio import ClipAudio
from dasheng_edge.runtime.engine.job import CaptionScheduler
from dasheng_edge.runtime.engine.request import Request
from dasheng_edge.runtime.errors import (
    AudioDecodeError,
    AudioError,
    AudioNotFoundError,
    CaptionerBusyError,
    ClipFailedError,
    DashengEdgeError,
    MemoryShortError,
    PromptError,
)
from dasheng_edge.runtime.text.sequences import MAX_SEQUENCES

REPOSITORY = Path(__file__).resolve().parents[2]
MICRO, CLIPS = REPOSITORY / "build" / "micro", REPOSITORY / "benchmarks" / "micro" / "clips"
RATE = 16000


def noises(count: int) -> list[tuple[np.ndarray, int]]:
    generator = np.random.default_rng(0)
    return [(generator.uniform(-0.4, 0.4, 4000 * (2 + 3 * i)).astype(np.float32), RATE) for i in range(count)]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_answers_are_those_of_one_by_one(captioner: Captioner, batch: int) -> None:
    clips = noises(5)
    want = [captioner.caption(clip, max_new_tokens=12) for clip in clips]
    got = captioner.caption_batch(clips, max_new_tokens=12, batch=batch)
    assert [one.tokens for one in got] == [one.tokens for one in want]
    assert [one.text for one in got] == [one.text for one in want]
    assert [one.finish_reason for one in got] == [one.finish_reason for one in want]
    assert [one.audio_tokens for one in got] == [one.audio_tokens for one in want]
    assert all(one.timings.total_ms > one.timings.prefill_ms > 0 for one in got)


@pytest.mark.skipif(not MICRO.is_dir(), reason="make build/micro makes it")
def test_real_answers_end_at_different_lengths() -> None:
    clips = [str(path) for path in sorted(CLIPS.glob("*.flac"))[::5]][:10]
    with Captioner.open(MICRO, threads=1) as captioner:
        want = [captioner.caption(clip) for clip in clips]
        got = captioner.caption_batch(clips, batch=5)
    assert [one.text for one in got] == [one.text for one in want]
    assert len({len(one.tokens) for one in got}) > 1
    assert {one.finish_reason for one in got} == {"stop"}


def test_sampling_with_a_seed_is_reproducible(captioner: Captioner) -> None:
    sampling = Sampling(temperature=1.0, seed=3)
    runs = [captioner.caption_batch(noises(3), max_new_tokens=6, sampling=sampling, batch=3) for _ in range(2)]
    assert [one.tokens for one in runs[0]] == [one.tokens for one in runs[1]]


def test_what_is_refused(captioner: Captioner) -> None:
    for batch in (0, MAX_SEQUENCES + 1):
        with pytest.raises(PromptError, match=f"batch is {batch}; expected 1 to {MAX_SEQUENCES}"):
            captioner.caption_batch(noises(1), batch=batch)
    with pytest.raises(PromptError, match="max_new_tokens is 0"):
        captioner.caption_batch(noises(1), max_new_tokens=0)
    with pytest.raises(AudioNotFoundError, match="nowhere"):
        captioner.caption_batch([*noises(1), "nowhere.wav"])
    assert captioner.caption_batch([]) == []
    with captioner._busy(), pytest.raises(CaptionerBusyError, match="busy"):
        captioner.caption_batch(noises(1))


def test_each_clip_has_its_caption_or_its_error(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    good, rows = noises(3), ClipAudio.rows
    crash, memory = noises(2)

    def hostile(self: ClipAudio) -> Any:
        if self.source is crash:
            raise ZeroDivisionError("frames")
        if self.source is memory:
            raise MemoryError
        return rows(self)

    monkeypatch.setattr(ClipAudio, "rows", hostile)
    want = [one.tokens for one in captioner.caption_batch(good, max_new_tokens=4)]
    clips = [good[0], "nowhere.wav", crash, good[1], b"no audio", memory, 5, good[2]]
    for batch in (1, 3, 8):
        results = list(captioner.caption_each(clips, max_new_tokens=4, batch=batch))  # type: ignore[arg-type]
        assert [one.tokens for one in results if isinstance(one, Caption)] == want
        errors = [one for one in results if not isinstance(one, Caption)]
        kinds = [AudioNotFoundError, ClipFailedError, AudioDecodeError, MemoryShortError, AudioError]
        assert [type(error) for error in errors] == kinds
        assert "ZeroDivisionError: frames" in str(errors[1])
        assert isinstance(errors[1].__cause__, ZeroDivisionError)
        assert "the audio array: there is not enough memory" in str(errors[3])


@pytest.mark.parametrize("beside", [True, False])
def test_encoder_and_decoder_may_work_at_the_same_time(captioner: Captioner, beside: bool) -> None:
    clips: list[Any] = [*noises(6), "nowhere.wav", (np.tile(noises(1)[0][0], 140), RATE), *noises(2)]
    asked = [Request(clip, None, None, 6 + place, Sampling()) for place, clip in enumerate(clips)]
    scheduler = CaptionScheduler(captioner.bundle, captioner.parts, 3, beside=beside)
    jobs = [scheduler.job(request) for request in asked]
    for job in jobs:
        scheduler.add(job)
    done: list[Any] = []
    while len(scheduler):
        scheduler.advance(done.append)
    scheduler.close()
    assert sorted(map(id, done)) == sorted(map(id, jobs))
    for job, clip, request in zip(jobs, clips, asked, strict=True):
        result = job.result()
        if clip == "nowhere.wav":
            assert isinstance(result, AudioNotFoundError)
            continue
        assert isinstance(result, Caption)
        alone = captioner.caption(clip, max_new_tokens=request.max_new_tokens)
        assert (result.tokens, result.audio_tokens, result.audio_s) == (
            alone.tokens,
            alone.audio_tokens,
            alone.audio_s,
        )
        assert min(result.timings.encoder_ms, result.timings.front_end_ms, result.timings.projector_ms) > 0


def test_each_result_is_told_at_once(captioner: Captioner) -> None:
    told: dict[int, Caption | DashengEdgeError] = {}
    clips: list[Any] = [*noises(4), b"broken", *noises(2), (np.zeros(RATE, np.float32), RATE)]
    for number, result in enumerate(
        captioner.caption_each(clips, max_new_tokens=6, batch=3, early=lambda *one: told.update([one]))
    ):
        assert told.get(number, result) == result
    assert {*told} >= {0, 1, 2, 3, 5, 6}  # the others end while they are read


def test_another_caption_may_be_asked_for_in_between(captioner: Captioner) -> None:
    clips = noises(5)
    want = [captioner.caption(clip, max_new_tokens=6).tokens for clip in clips]
    results = captioner.caption_each(clips, max_new_tokens=6, batch=3)
    for place, one in enumerate(results):
        assert isinstance(one, Caption)
        assert one.tokens == want[place]
        assert captioner.caption(clips[-1], max_new_tokens=6).tokens == want[-1]


def test_what_is_not_wanted_is_left(captioner: Captioner) -> None:
    taken: list[int] = []

    def endless() -> Iterator[tuple[np.ndarray, int]]:
        while True:
            taken.append(1)
            yield noises(1)[0]

    others = set(captioner._schedulers)  # of tests that left theirs to the garbage collector
    results = captioner.caption_each(endless(), max_new_tokens=3, batch=2)
    next(results)
    assert captioner._schedulers - others
    results.close()
    assert len(taken) <= 5  # a few ahead
    assert not captioner._schedulers - others
    assert captioner.caption(noises(1)[0], max_new_tokens=3).tokens


def test_closing_ends_what_is_under_way(tiny_bundle: Path) -> None:
    captioner = Captioner.open(tiny_bundle, threads=1)
    results = captioner.caption_each(noises(6), max_new_tokens=3, batch=2)
    next(results)
    captioner.close()
    with pytest.raises(CaptionerBusyError, match="closed"):
        list(results)


def test_what_is_wrong_for_all_clips_is_raised_at_once(captioner: Captioner) -> None:
    asked: list[dict[str, Any]] = [
        {"prompt": 5},
        {"max_new_tokens": 2.5},
        {"batch": 2.5},
        {"batch": True},
        {"sampling": {}},
    ]
    for wrong in asked:
        with pytest.raises(PromptError):
            captioner.caption_each(noises(1), **wrong)
        with pytest.raises(PromptError):
            captioner.caption_batch(noises(1), **wrong)
    for clips in ("clip.wav", Path("clip.wav"), b"RIFF", None, 5):
        with pytest.raises(AudioError, match="expected a list of paths"):
            captioner.caption_each(clips)  # type: ignore[arg-type]
    with captioner._busy(), pytest.raises(CaptionerBusyError):
        next(captioner.caption_each(noises(1)))
