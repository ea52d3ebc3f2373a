"""Samples as they come -> windows of audio embeddings: silence costs a spectrogram, and nothing is encoded twice.

    samples -> ticks of 200 ms -> gate -> blocks, which are encoded once -> windows, which share their embeddings

A tick is an audio token: five patches, so that blocks may begin and end at any of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.audio.front_end import Features, FrontEnd
from dasheng_edge.runtime.audio.gate import SILENT_DB, Gate, level_db
from dasheng_edge.runtime.audio.read import Waveform
from dasheng_edge.runtime.errors import AudioError

BEFORE_TICKS = 2  # that are heard with a sound, since it may set in softly
QUIET_TICKS = 2  # that end a sound: with 3 and 4, a caption is as much later, and names no more of the sounds
TAIL_TICKS = 1  # of those, that are heard with it
CUT_SHARE = 0.4  # of the longest window, at its end: the quietest place there is where a lasting sound is cut
MIN_WINDOW_S, MAX_WINDOW_S = 1.0, 60.0


@dataclass(frozen=True)
class WindowPlan:
    """How long a window is at most, and how often there is one while a sound lasts: hop_s == window_s is no overlap.

    Without overlap, a window is encoded at once, and its numbers are those of a clip. With it, blocks of `hop_s` are
    encoded, each for itself: on MiDashengLM-micro, windows of 10 s in blocks of 5, 3, 2 and 1 s name 98, 98, 96 and
    88 % of the sounds that are named without blocks.

    Raises:
        AudioError: the windows leave gaps, do not move on, or are too short or long.
    """

    window_s: float = 10.0
    hop_s: float = 10.0

    def __post_init__(self) -> None:
        if not MIN_WINDOW_S <= self.hop_s <= self.window_s <= MAX_WINDOW_S:  # written so that NaN is refused, too
            raise AudioError(
                f"the window is {self.window_s:g} s and moves on by {self.hop_s:g} s; expected a hop from "
                f"{MIN_WINDOW_S:g} s to the window, and a window of at most {MAX_WINDOW_S:g} s"
            )


@dataclass(frozen=True)
class Tick:
    """One audio token of audio, before it is encoded."""

    index: int  # since the beginning
    level_db: float
    spectrograms: Sequence[NDArray[np.float32]]  # [bands, frames] each, as `FrontEnd.frames`


@dataclass(frozen=True)
class Window:
    """A part of what was heard; `embeddings` are None if it was dropped, since there was no time for it."""

    start_s: float
    end_s: float
    sounded_s: float  # when the last sound in it was heard
    embeddings: NDArray[np.float32] | None  # [tokens, llm_dim]
    encoding_ms: float


class Ticks:
    """Cuts samples into ticks with their spectrograms, which see what is before and behind each."""

    def __init__(self, front_end: FrontEnd) -> None:
        self._front_end, spec = front_end, front_end.spec
        self.samples = spec.samples_per_token
        self.frames = self.samples // spec.hop_length
        self._context = (front_end.edge_frames + 1) * spec.hop_length
        self._waveform, self._before = np.zeros(0, np.float32), 0  # samples of it that are context
        self._index = 0
        self._ahead = 0  # samples by which the ticks so far are longer than what was heard and what is missing

    def add(self, samples: Waveform) -> Iterator[Tick]:
        """Ticks that are whole now, and whose context has come."""
        self._waveform = np.concatenate([self._waveform, samples])
        while len(self._waveform) >= self._before + self.samples + self._context:
            yield self._next()

    def end(self, lost: int = 0) -> Iterator[Tick]:
        """The others, the last filled up with silence; what comes then has no context, and `lost` samples are missing.

        Of the time that is missing, whole ticks count; what that is too much or too little counts the next time.
        """
        if rest := (len(self._waveform) - self._before) % self.samples:
            self._waveform = np.pad(self._waveform, (0, self.samples - rest))
            self._ahead += self.samples - rest
        while len(self._waveform) > self._before:
            yield self._next()
        self._waveform, self._before = np.zeros(0, np.float32), 0
        missing = max(0, round((lost - self._ahead) / self.samples)) if lost else 0
        self._index += missing
        self._ahead += missing * self.samples - lost

    def _next(self) -> Tick:
        begin, hop = self._before, self._front_end.spec.hop_length
        spectrograms = self._front_end.frames(self._waveform, begin // hop, self.frames)
        level = level_db(self._waveform[begin : begin + self.samples])
        drop = max(0, begin + self.samples - self._context)
        self._waveform, self._before = self._waveform[drop:], begin + self.samples - drop
        self._index += 1
        return Tick(self._index - 1, level, spectrograms)


class Ear:
    """Hears what comes; `hear`, `skip` and `end` give the windows that are complete.

    `late` says whether there is no time left for a window: it is dropped before it is encoded.
    """

    def __init__(self, audio: AudioInputParts, plan: WindowPlan, late: Callable[[], bool] = lambda: False) -> None:
        spec = audio.front_end.spec
        self._tick_s = spec.samples_per_token / spec.sample_rate_hz
        self._ticks = Ticks(audio.front_end)
        self._gate = Gate(spec, block_s=self._tick_s)
        self._encoder, self._projector, self._late = audio.encoder, audio.projector, late
        self._window, self._hop = (round(seconds / self._tick_s) for seconds in (plan.window_s, plan.hop_s))
        self._before: deque[Tick] = deque(maxlen=BEFORE_TICKS)
        self._pending: list[Tick] = []  # of the sound that is heard, not encoded yet
        self._rows: list[NDArray[np.float32]] = []  # of it, encoded, and in the next window too
        self._sounded = 0  # the tick behind the last one for which the gate was open
        self._loudest_db = -np.inf  # bin of the window so far
        self.level_db = SILENT_DB
        self.ticks = self.sounding_ticks = self.encoded_ticks = 0

    @property
    def hears(self) -> bool:
        """Whether there is a sound at present."""
        return bool(self._pending or self._rows)

    @property
    def began_s(self) -> float | None:
        """When the window that is heard began; None if there is none."""
        return round(self._pending[0].index * self._tick_s, 3) if self._pending else None

    @property
    def floor_db(self) -> float:
        """Level of the background, in dBFS."""
        return self._gate.floor_db

    def hear(self, samples: Waveform) -> Iterator[Window]:
        """Windows that are complete with these samples, float32 [n]."""
        for tick in self._ticks.add(samples):
            yield from self._hear(tick)

    def end(self, lost_s: float = 0.0) -> Iterator[Window]:
        """The windows that are left; so many seconds are missing then, of which whole ticks count."""
        for tick in self._ticks.end(round(lost_s / self._tick_s * self._ticks.samples)):
            yield from self._hear(tick)
        if self._pending and self._sounded > self._pending[0].index:
            yield self._cut(len(self._pending))
        self._forget()
        self.level_db = SILENT_DB

    def _hear(self, tick: Tick) -> Iterator[Window]:
        self.ticks += 1
        self.level_db = tick.level_db
        if self._gate.opens(tick.level_db, tick.spectrograms[0]):
            self._sounded = tick.index + 1
            self.sounding_ticks += 1
        elif not self.hears:
            self._before.append(tick)
            return
        if not self.hears:
            self._pending += self._before
            self._before.clear()
        self._pending.append(tick)
        quiet = tick.index + 1 - self._sounded
        if quiet >= QUIET_TICKS:
            yield from self._end_of_sound(quiet)
        elif len(self._pending) == self._hop:
            yield self._cut(self._quietest() if self._hop == self._window else self._hop)

    def _end_of_sound(self, quiet: int) -> Iterator[Window]:
        """What is quiet behind it may be the beginning of the next."""
        size = max(0, len(self._pending) - quiet + TAIL_TICKS)
        rest = self._pending[size:]
        if self._sounded > self._pending[0].index:  # else all of it was in the last window
            yield self._cut(size)
        self._forget()
        self._before.extend(rest)

    def _forget(self) -> None:
        self._pending, self._rows, self._loudest_db = [], [], -np.inf

    def _quietest(self) -> int:
        """How many of the pending ticks go into a window that must end, so that it ends where it is quietest."""
        first = round(self._window * (1 - CUT_SHARE))
        levels = [tick.level_db for tick in self._pending[first:]]
        return first + int(np.argmin(levels)) + 1

    def _cut(self, size: int) -> Window:
        """A window that ends with the first `size` of the pending ticks."""
        block, self._pending = self._pending[:size], self._pending[size:]
        end, start_ms = block[-1].index + 1, 1000 * perf_counter()
        if self._late():
            self._rows = []
            return self._made(end, len(block), None, 0.0)
        rows = np.concatenate([*self._rows, self._encoded(block)])[-self._window :]
        kept = self._window - self._hop
        self._rows = [rows[-kept:]] if kept else []
        return self._made(end, len(rows), rows, 1000 * perf_counter() - start_ms)

    def _made(self, end: int, ticks: int, rows: NDArray[np.float32] | None, encoding_ms: float) -> Window:
        start_s, end_s, sounded_s = (
            round(tick * self._tick_s, 3) for tick in (end - ticks, end, min(end, self._sounded))
        )
        return Window(start_s, end_s, sounded_s, rows, encoding_ms)

    def _encoded(self, block: Sequence[Tick]) -> NDArray[np.float32]:
        """One row for each tick, float32 [ticks, llm_dim]."""
        spec = self._encoder.spec
        log_mel, *others = (
            np.concatenate(parts, axis=1) for parts in zip(*(t.spectrograms for t in block), strict=True)
        )
        self._loudest_db = max(self._loudest_db, float(log_mel.max()))  # of a window, as of a clip: see top_db
        limited = np.maximum(log_mel, np.float32(self._loudest_db - spec.top_db))
        features = Features(limited, others[0] if others else None, len(block) * self._ticks.samples)
        self.encoded_ticks += len(block)
        return self._projector.embeddings(self._encoder.patches(features))
