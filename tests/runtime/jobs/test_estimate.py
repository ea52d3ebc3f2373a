"""What a long job will take: how files become clips, what they take, and how that compares with real runs."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest import mock

import av
import av.error
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as some

from dasheng_edge.runtime.audio.windows import spans
from dasheng_edge.runtime.caption import Caption, Timings
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.errors import AudioTooLongError, DecoderError, MemoryShortError
from dasheng_edge.runtime.jobs import estimate as module
from dasheng_edge.runtime.jobs.estimate import (
    Answers,
    Cut,
    Estimate,
    Pace,
    Work,
    check_fits,
    estimate,
    foretell,
    read_durations,
    spoken,
    spread,
)
from dasheng_edge.runtime.jobs.inputs import Input
from dasheng_edge.runtime.jobs.pieces import Questions, Reading
from tests.fixtures.audio_files import Format, sine, write_audio

RATE = 1000  # the lowest, since only lengths count
MICRO = Path("build/micro")
CLIPS = Path("benchmarks/micro/clips")


@given(some.integers(0, 3000))
def test_of_many_inputs_a_few_are_kept_that_lie_far_apart(count: int) -> None:
    kept, inputs = list[Input](), (Input(str(at), str(at), str(at)) for at in range(count))
    assert [int(item.path) for item in spread(inputs, kept)] == [*range(count)]
    places = [int(item.path) for item in kept]
    assert min(count, module.PROBES) <= len(places) < 2 * module.PROBES
    assert places == [*range(0, count, places[1] if len(places) > 1 else 1)]


@given(
    some.integers(1, 400_000),
    some.sampled_from([0.0, 30.0, 210.0]),
    some.floats(1, 60).flatmap(lambda window: some.tuples(some.just(window), some.floats(0.5, max(0.5, window)))),
)
@budget(max_examples=50, deadline=None)
def test_files_are_cut_as_they_will_be(samples: int, whole_s: float, windows: tuple[float, float]) -> None:
    window_s, hop_s = (round(seconds * RATE) / RATE for seconds in windows)
    audio = np.zeros(samples, np.float32)
    cut = [
        span.end_s - span.start_s
        for span in spans((audio, RATE), RATE, whole_s=whole_s, window_s=window_s, hop_s=hop_s)
    ]
    law = Cut(whole_s, window_s, hop_s)
    count, seconds = law.clips_of(samples / RATE)
    assert count == len(cut)
    assert seconds == pytest.approx(sum(cut), abs=1e-6)
    assert law.longest_s(samples / RATE) == pytest.approx(max(cut), abs=1e-6)


def test_files_that_do_not_say_count_as_the_others() -> None:
    cut = Cut(210.0, 30.0, 15.0)
    known = Work.of([10.0, 300.0], cut)
    assert (known.clips, known.file_s, known.longest_s, known.unknown) == (1 + 19, 310.0, 30.0, 0)
    half = Work.of([10.0, None, 300.0, None], cut)
    assert (half.files, half.unknown, half.clips, half.file_s) == (4, 2, 40, 620.0)
    none = Work.of([None, None], cut)
    assert (none.clips, none.clip_s, none.unknown) == (0, 0.0, 2)
    assert Work.of([], cut).files == 0


def item(path: Path, offset_s: float = 0.0, duration_s: float | None = None) -> Input:
    return Input(str(path), str(path), path.name, offset_s=offset_s, duration_s=duration_s)


def caption_of(hearing_ms: float, prefill_ms: float, decode_ms: float, audio_s: float = 10.0) -> Caption:
    timings = Timings(0.0, 0.0, hearing_ms, 0.0, prefill_ms, 0.0, 0.0, decode_ms, 0.0, 1)
    fields: dict[str, Any] = {field.name: None for field in dataclasses.fields(Caption)}
    fields |= {"audio_s": audio_s, "timings": timings, "prompt_tokens": 5, "audio_tokens": 50, "tokens": (1,)}
    return Caption(**fields)


def test_the_pace_of_captions() -> None:
    captions = [[caption_of(100, 20, 40)], [caption_of(300, 20, 80, audio_s=30)], [caption_of(100, 20, 1000)]]
    alone, together = Pace.of(captions, together=False), Pace.of(captions, together=True)
    assert (alone.clip_s, alone.audio_s) == pytest.approx((0.1, 0.01))
    assert together.clip_s == pytest.approx(0.02 + 0.04)
    assert together.audio_s == alone.audio_s
    twice = Pace.of([answers * 2 for answers in captions], together=False)  # is heard once
    assert (twice.clip_s, twice.audio_s) == pytest.approx((2 * alone.clip_s, alone.audio_s))


def test_an_estimate_is_by_the_first_clips_but_the_very_first(captioner: Captioner) -> None:
    work = Work.of([10.0] * 100, Cut(210.0, 30.0, 15.0))
    pace = [caption_of(9e9, 9e9, 0), caption_of(100, 50, 0), caption_of(100, 50, 0)]
    failing = iter([*pace, None])

    def probe() -> Answers:
        if (found := next(failing)) is None:
            raise DecoderError("no")
        return [found]

    told = estimate(captioner, work, [probe] * 4, batch=1)
    assert told is not None
    assert told.seconds == pytest.approx(100 * 0.15)
    assert told.memory_bytes is None or told.memory_bytes > 50e6
    few = dataclasses.replace(work, clips=3)
    assert estimate(captioner, few, iter(int, 1), batch=1) is None  # type: ignore[arg-type]  # asks for no probe

    def fails() -> Answers:
        raise DecoderError("no")

    assert estimate(captioner, work, [fails], batch=1) is None
    assert estimate(captioner, work, [], batch=1) is None


def test_probing_ends_in_time(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBING_S", 0.0)
    asked = []

    def probe() -> Answers:
        asked.append(1)
        return [caption_of(100, 50, 0)]

    work = Work.of([10.0] * 100, Cut(210.0, 30.0, 15.0))
    assert estimate(captioner, work, [probe] * 9, batch=4) is not None
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 seconds"),
        (89, "89 seconds"),
        (90, "1.5 minutes"),
        (720, "12 minutes"),
        (12600, "3.5 hours"),
        (1e6, "12 days"),
    ],
)
def test_times_as_people_say_them(seconds: float, said: str) -> None:
    assert spoken(seconds) == said


def test_the_sentence_has_the_facts() -> None:
    windows = Work.of([3600.0, None], Cut(210.0, 30.0, 15.0))
    text = str(Estimate(windows, 7200.0, 800_000_000))
    assert text == (
        "2 files (1 of them do not say how long they are), 2 hours of audio in 478 windows: takes about 2 hours, and "
        "0.8 GB of memory"
    )
    assert (
        str(Estimate(Work.of([40.0], Cut(210, 30, 15)), 5, None))
        == "1 file, 40 seconds of audio: takes about 5 seconds"
    )


@pytest.mark.parametrize("kind", [Format("wav", "wav", "pcm_s16le", 16_000), Format("mka", "matroska", "flac", 16_000)])
def test_durations_are_read_from_headers(tmp_path: Path, kind: Format) -> None:
    file = write_audio(tmp_path / "clip", sine(440, 2, 16_000), kind)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    durations = read_durations(map(item, [file, broken, tmp_path / "none.wav", tmp_path]))
    assert durations == [pytest.approx(2.0, abs=0.1), None, None, None]
    parts = [item(file, offset_s=0.5), item(file, offset_s=0.5, duration_s=1.0), item(Path("-"))]
    assert read_durations(parts) == [pytest.approx(1.5, abs=0.1), 1.0, None]


@pytest.mark.parametrize("raised", sorted({*av.error.classes.values(), RecursionError}, key=str))
def test_whatever_a_reader_of_headers_raises_ends_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: type[Exception]
) -> None:
    file = write_audio(tmp_path / "clip", sine(440, 2, 16_000), Format("wav", "wav", "pcm_s16le", 16_000))
    error = raised(1, "wrong") if issubclass(raised, av.error.FFmpegError) else raised()
    monkeypatch.setattr(av, "open", mock.Mock(side_effect=error))
    assert read_durations([item(file)]) == [None]


@pytest.mark.parametrize("seed", range(8))
def test_damaged_headers_end_no_job(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number, (container, codec) in enumerate(
        [("ogg", "libopus"), ("matroska", "flac"), ("mp4", "aac"), ("ogg", "flac")]
    ):
        file = write_audio(tmp_path / str(number), sine(440, 1, 48_000), Format(container, container, codec, 48_000))
        content = np.frombuffer(file.read_bytes()[: int(rng.integers(40, 4000))], np.uint8).copy()
        content[rng.integers(4, content.size, 12)] = rng.integers(0, 256, 12)
        file.write_bytes(content.tobytes())
        read_durations([item(file)])


def test_a_playlist_and_a_pipe_are_not_opened_to_tell_their_length(tmp_path: Path) -> None:
    write_audio(tmp_path / "clip", sine(440, 2, 16_000), Format("wav", "wav", "pcm_s16le", 16_000))
    playlist = tmp_path / "list.ffconcat"
    playlist.write_text(f"ffconcat version 1.0\nfile '{next(tmp_path.glob('clip*')).name}'\n", "utf-8")
    os.mkfifo(tmp_path / "pipe.wav")
    assert read_durations([item(playlist), item(tmp_path / "pipe.wav"), item(tmp_path / (300 * "n"))]) == [None] * 3


def test_reading_headers_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READING_S", 0.0)
    file = write_audio(tmp_path / "clip", sine(440, 2, 16_000), Format("wav", "wav", "pcm_s16le", 16_000))
    assert read_durations([item(file)] * 3) == [None] * 3


def test_what_does_not_fit_is_refused(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    check_fits(captioner, 10.0, 32, windows=True)
    check_fits(captioner, 40_000.0, 32, windows=False)  # others may fit
    positions, rate = captioner.parts.decoder.context_length, captioner.bundle.manifest.front_end.sample_rate_hz
    with pytest.raises(AudioTooLongError, match="--window") as error:
        check_fits(captioner, 40_000.0, 32, windows=True)
    fitting = float(str(error.value).partition("less than ")[2].split()[0])
    check_fits(captioner, fitting, 32, windows=True)
    assert captioner.bundle.manifest.front_end.tokens_of(round(fitting * rate)) + 32 <= positions
    monkeypatch.setattr("dasheng_edge.runtime.machine.memory.free_bytes", lambda: 1 << 20)
    with pytest.raises(MemoryShortError, match="shorter windows"):
        check_fits(captioner, 300.0, 32, windows=True)


@pytest.mark.parametrize("windows", [None, (2.0, 1.0)])
def test_a_long_job_is_foretold_and_a_quiet_one_checked(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: tuple[float, float] | None
) -> None:
    monkeypatch.setattr(module, "LONG_S", 0.0)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 16_000 * 3).astype(np.float32)
    file = write_audio(tmp_path / "clip.wav", noise, Format("wav", "wav", "pcm_s16le", 16_000))
    asked = Questions(None, None, 4, captioner.bundle.prompt_facts.sampling), Reading(windows)
    told: list[Estimate] = []
    foretell(captioner, [item(file)] * 20 + [item(Path("-"))], asked, batch=4, tell=told.append)
    (one,) = told
    assert (one.work.files, one.work.unknown) == (21, 1)
    assert one.work.clips == (42 if windows else 21)
    assert 0 < one.seconds < 60
    foretell(captioner, [item(file)] * 5, asked, batch=4, tell=told.append)  # few
    foretell(captioner, [item(file)] * 20, (asked[0], Reading(live=True)), batch=1, tell=told.append)
    foretell(captioner, [item(file)] * 20, asked, batch=4, tell=None)
    assert len(told) == 1
    with pytest.raises(AudioTooLongError):
        foretell(captioner, [item(Path("-"))], (asked[0], Reading((80_000.0, 1.0))), batch=4, tell=None)


@pytest.mark.slow
@pytest.mark.skipif(not MICRO.is_dir(), reason="make build/micro")
def test_real_runs_on_micro_take_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONG_S", 0.0)
    files = sorted(CLIPS.glob("*.flac"))
    ratios = []
    with Captioner.open(MICRO, few=True) as captioner:
        batch = captioner.parts.decoder.settings.batch
        for run in range(5):
            paths = (files[run:] + files)[:40] * 2
            asked = Questions(None, None, None, captioner.bundle.prompt_facts.sampling), Reading()
            told: list[Estimate] = []
            foretell(captioner, map(item, paths), asked, batch=batch, tell=told.append)
            started = perf_counter()
            assert len(list(captioner.caption_each(paths))) == told[0].work.clips
            ratios.append(told[0].seconds / (perf_counter() - started))
    assert abs(math.log(statistics.median(ratios))) <= math.log(1.5), ratios
