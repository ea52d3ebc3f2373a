"""What a long job will take, said before it begins: minutes by the pace of first clips, memory by its longest ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TypeAlias

from dasheng_edge.runtime.audio.container import stated_seconds
from dasheng_edge.runtime.audio.windows import HOP_S, WINDOW_S, spans
from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.errors import AudioTooLongError, DashengEdgeError
from dasheng_edge.runtime.gguf.check import Sizes
from dasheng_edge.runtime.gguf.header import read_header
from dasheng_edge.runtime.machine.memory import require
from dasheng_edge.runtime.machine.meters import peak_rss_bytes
from dasheng_edge.runtime.text.context import KV_TYPES
from dasheng_edge.runtime.text.context_memory import KV_BITS, kept_bytes

from .inputs import STDIN, Input
from .pieces import Questions, Reading

MIN_CLIPS = 20  # of fewer, the first clips would be a good part of the job
LONG_S = 30.0  # a shorter job is not worth a sentence
READING_S = 2.0  # that reading headers may take; of the files behind, the mean is taken
MAX_DURATION_S = 366 * 86_400.0  # a header that says more is wrong
_SAMPLE_BYTES = 4  # float32
_ROUNDING = 1e-9  # of hops
PROBES, PROBING_S = 5, 1.0  # first clips, and seconds that they may take after the first of them
# A token's time in a batch by its time alone: 0.72 of a 7B, 8 at once, and 0.32 of a 0.6B, 16 at once (docs/speed.md).
SHARE = 0.5
Answers: TypeAlias = Sequence[Caption]  # of one clip: as many as there are questions


@dataclass(frozen=True)
class Cut:
    """How files become clips: whole up to `whole_s`, else in windows of `window_s` every `hop_s`, as `spans` does."""

    whole_s: float
    window_s: float
    hop_s: float

    def clips_of(self, seconds: float) -> tuple[int, float]:
        """How many clips a file is, and the seconds of audio in all of them; windows overlap."""
        if seconds <= self.whole_s:
            return 1, seconds
        before = max(0, math.ceil((seconds - self.window_s) / self.hop_s - _ROUNDING))  # windows before the last
        return before + 1, before * self.window_s + seconds - before * self.hop_s

    def longest_s(self, seconds: float) -> float:
        """Of the clips of such a file."""
        return seconds if seconds <= self.whole_s else min(seconds, self.window_s)


@dataclass(frozen=True)
class Work:
    """All clips of a job."""

    files: int
    unknown: int  # files that do not say how long they are
    file_s: float  # of all files, with the mean of the others for each that does not say
    clips: int
    clip_s: float  # of all clips, which is more than that of the files where windows overlap
    longest_s: float  # clip

    @classmethod
    def of(cls, durations: Iterable[float | None], cut: Cut) -> Work:
        """`durations` are seconds of the files, None where that is not known."""
        all_of_them = list(durations)
        known = [seconds for seconds in all_of_them if seconds is not None]
        scale = len(all_of_them) / len(known) if known else 0.0
        count, clip_s = 0, 0.0
        for clips, seconds in map(cut.clips_of, known):
            count, clip_s = count + clips, clip_s + seconds
        return cls(
            files=len(all_of_them),
            unknown=len(all_of_them) - len(known),
            file_s=scale * sum(known),
            clips=round(scale * count),
            clip_s=scale * clip_s,
            longest_s=max(map(cut.longest_s, known), default=0.0),
        )


@dataclass(frozen=True)
class Pace:
    """What clips take: seconds of work for each, and for each second of their audio."""

    clip_s: float
    audio_s: float

    @classmethod
    def of(cls, clips: Sequence[Answers], *, together: bool) -> Pace:
        """The pace of clips that were asked about one by one; `together`: in batches, their tokens take less."""
        share = SHARE if together else 1.0
        heard = [answers[0].timings for answers in clips]  # once for all answers
        hearing = sum(one.audio_decode_ms + one.front_end_ms + one.encoder_ms + one.projector_ms for one in heard)
        answering = [
            sum(one.timings.prefill_ms + share * one.timings.decode_ms for one in answers) for answers in clips
        ]
        seconds = sum(answers[0].audio_s for answers in clips)
        return cls(median(answering) / 1000.0, hearing / 1000.0 / seconds if seconds else 0.0)


@dataclass(frozen=True)
class Estimate:
    """What a job will take."""

    work: Work
    seconds: float
    memory_bytes: int | None  # None where the system does not tell

    def __str__(self) -> str:
        work = self.work
        clips = f" in {work.clips:,} windows" if work.clips > work.files else ""
        files = f"{work.files:,} files" if work.files > 1 else "1 file"
        unknown = f" ({work.unknown:,} of them do not say how long they are)" if work.unknown else ""
        memory = f", and {self.memory_bytes / 1e9:.1f} GB of memory" if self.memory_bytes else ""
        return f"{files}{unknown}, {spoken(work.file_s)} of audio{clips}: takes about {spoken(self.seconds)}{memory}"


def spoken(seconds: float) -> str:
    """A time as people say it: 40 seconds, 12 minutes, 3.5 hours."""
    for size, name in ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {name}" if seconds < 10 * size else f"{seconds / size:,.0f} {name}"
    return f"{seconds:.0f} seconds"


def foretell(
    captioner: Captioner,
    inputs: Iterable[Input],
    asked: tuple[Questions, Reading],
    *,
    batch: int,
    tell: Callable[[Estimate], None] | None,
) -> None:
    """Tell what a long job takes, and refuse what does not fit; None tells nobody.

    Raises:
        AudioTooLongError: windows of this length are longer than the decoder hears.
        MemoryShortError: there is no memory for a single answer about the longest clip.
    """
    questions, reading = asked
    if reading.live:
        return
    facts = captioner.bundle.prompt_facts
    cut = Cut(0.0, *reading.windows) if reading.windows else Cut(facts.comfortable_s, WINDOW_S, HOP_S)
    files = list[Input]()
    work = Work.of(read_durations(spread((item for item in inputs if item.error is None), files)), cut)
    longest_s = max(work.longest_s, cut.window_s if work.unknown else 0.0)
    check_fits(captioner, longest_s, questions.max_new_tokens or facts.max_new_tokens, windows=bool(reading.windows))
    if tell is None:
        return
    count = min(PROBES, len(files))
    probes = (partial(_first, captioner, files[at * len(files) // count], asked, cut) for at in range(count))
    if (told := estimate(captioner, work, probes, batch=batch)) is not None and told.seconds >= LONG_S:
        tell(told)


def spread(inputs: Iterable[Input], files: list[Input]) -> Iterator[Input]:
    """Hand inputs on, and keep files that are evenly spread over all so far: fewer than 2 * PROBES, the first among."""
    step, count = 1, 0
    for item in inputs:
        yield item
        if item.path != STDIN:
            if count % step == 0:
                files.append(item)
            if len(files) == 2 * PROBES:
                del files[1::2]
                step *= 2
            count += 1


def _first(captioner: Captioner, item: Input, asked: tuple[Questions, Reading], cut: Cut) -> Answers:
    """What is said about an input's first clip."""
    questions, reading = asked
    rate_hz = captioner.bundle.manifest.front_end.sample_rate_hz
    source = item.read(rate_hz, strict=reading.strict, track=reading.track)
    clip = next(spans(source, rate_hz, whole_s=cut.whole_s, window_s=cut.window_s, hop_s=cut.hop_s)).audio
    answers = captioner.ask(
        clip, questions.named or {"": questions.prompt}, system=questions.system,
        max_new_tokens=questions.max_new_tokens, sampling=questions.sampling,
    )  # fmt: skip
    return [*answers.values()]


def estimate(
    captioner: Captioner, work: Work, probes: Iterable[Callable[[], Answers]], *, batch: int
) -> Estimate | None:
    """What work takes, by answers about some of its clips, which are made for this alone. Raises nothing."""
    if work.clips < MIN_CLIPS:
        return None
    clips: list[Answers] = []
    started = 0.0
    for probe in islice(probes, PROBES):
        if clips and perf_counter() - started > PROBING_S:
            break
        with suppress(DashengEdgeError):
            clips.append(probe())
            started = started or perf_counter()
    heard = [answers for answers in clips if answers[0].tokens]  # nothing is asked about silence
    if not heard:
        return None
    # The first has all that is done once behind it.
    pace = Pace.of(heard[1:] or heard, together=batch > 1)
    rows = max(one.prompt_tokens + one.audio_tokens for answers in heard for one in answers)
    return Estimate(work, work.clips * pace.clip_s + work.clip_s * pace.audio_s, memory_bytes(captioner, rows, batch))


def _position_bytes(captioner: Captioner) -> int:
    """Keys and values of a position."""
    header = read_header(captioner.bundle.path(DECODER))
    bits = KV_BITS[KV_TYPES[captioner.parts.decoder.settings.kv_type]]
    return kept_bytes(Sizes.stated(header, header.text("general.architecture")), 1, bits)


def memory_bytes(captioner: Captioner, rows: int, batch: int) -> int | None:
    """What the process will have taken at most: what it has taken, and what `batch` answers behind `rows` rows add."""
    if (taken := peak_rss_bytes()) is None:
        return None
    return taken + batch * (rows + captioner.bundle.prompt_facts.max_new_tokens) * _position_bytes(captioner)


def check_fits(captioner: Captioner, longest_s: float, max_new_tokens: int, *, windows: bool) -> None:
    """Refuse clips of `longest_s` seconds of which not even one would be answered; `windows`: all are of that length.

    Raises:
        AudioTooLongError: their rows are more than the decoder has positions.
        MemoryShortError: there is no memory for a single answer about one.
    """
    spec, decoder = captioner.bundle.manifest.front_end, captioner.parts.decoder
    samples = round(longest_s * spec.sample_rate_hz)
    rows = spec.tokens_of(samples) + max_new_tokens
    if windows and rows > decoder.context_length:
        fitting = spec.samples_for_tokens(max(1, decoder.context_length - max_new_tokens)) / spec.sample_rate_hz
        raise AudioTooLongError(
            f"windows of {longest_s:g} s need over {rows:,} positions, the decoder has {decoder.context_length:,}; "
            f"take windows of less than {math.floor(fitting)} s (--window), or fewer tokens (--max-new-tokens)"
        )
    if decoder.settings.text_device == "cpu":
        own = min(rows, decoder.context_length) * _position_bytes(captioner) + _SAMPLE_BYTES * samples
        require(f"a clip of {longest_s:g} s", "take shorter windows (--window), or a smaller bundle", own=own)


def read_durations(inputs: Iterable[Input]) -> list[float | None]:
    """Seconds of each input, by the header of its file; None where that does not say it or cannot be read.

    Takes READING_S at most. Raises nothing.
    """
    end, durations = perf_counter() + READING_S, list[float | None]()
    for item in inputs:
        stated = item.duration_s
        if stated is None and perf_counter() < end and item.path != STDIN:
            whole = _duration(item.path)
            stated = None if whole is None else max(0.0, whole - item.offset_s)
        durations.append(stated)
    return durations


def _duration(path: str) -> float | None:
    seconds = stated_seconds(Path(path))
    return seconds if seconds is not None and 0 < seconds < MAX_DURATION_S else None
