"""Listening at the speed of time: how long after a sound is its caption there, and what does silence cost?

    python -m benchmarks.speed.listening BUNDLE --minutes 60

A quiet room with a sound of micro's kinds every few seconds, and a minute of silence in every four, whose times are
known. The last line is JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import numpy as np

from benchmarks.micro.scenes.captions import named_kinds
from benchmarks.micro.scenes.signals import RATE, Samples, db, loudness, ramped
from benchmarks.micro.scenes.sounds import MAKERS, shortest_s
from benchmarks.records.benchmark import SMALL, Benchmark, Target, parser, run
from benchmarks.records.plots import Panel, bars, bars_of
from benchmarks.records.record import BenchmarkError, Record
from benchmarks.records.section import Section, table
from benchmarks.records.turns import summed_up
from dasheng_edge.runtime import Bundle, Engine
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.live.ear import WindowPlan
from dasheng_edge.runtime.live.listening import Heard, Listening, captions_of
from dasheng_edge.runtime.live.source import FileSource, SystemClock

MINUTES, WINDOW_S, HOP_S, TOKENS = 60.0, 10.0, 5.0, 16
SOUNDS = 60  # different ones, made before time begins
MAX_SOUND_S, GAPS_S = 8.0, (1.5, 9.0)
LOUD_S, SILENT_S = 180.0, 60.0  # by turns
ROOM_DB, LEVELS_DB, OVER_DB = -65.0, (-35.0, -15.0), 40.0  # of full scale; where a sound is over, below its loudest
SETTLED = 0.25  # of the time, after which memory should no longer grow
SETTLING_S = 5.0  # of silence, in which the last captions are made


@dataclass(frozen=True)
class Event:
    """A sound in the room, in seconds since the beginning."""

    kind: str
    start_s: float
    end_s: float


@dataclass
class Room:
    """An endless room; `events` are the sounds so far, `silences` the times without one."""

    seed: int = 0
    events: list[Event] = field(default_factory=list)
    silences: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self._sounds = [_sound(self._rng) for _ in range(SOUNDS)]

    def blocks(self, seconds: float) -> Iterator[Samples]:
        """Its audio, a stretch of silence or a sound at a time."""
        at = 0.0
        while at < seconds:
            until_s = at + LOUD_S
            while at < min(until_s, seconds):
                gap = self._rng.uniform(*GAPS_S)
                yield self._quiet(gap)
                kind, sound = self._sounds[self._rng.integers(SOUNDS)]
                self.events.append(Event(kind, at + gap, at + gap + len(sound) / RATE))
                yield self._quiet(len(sound) / RATE) + sound
                at = self.events[-1].end_s
            self.silences.append((at, at + SILENT_S))
            yield self._quiet(SILENT_S)
            at += SILENT_S

    def _quiet(self, seconds: float) -> Samples:
        return np.asarray(db(ROOM_DB) * self._rng.normal(size=round(seconds * RATE)), np.float32)


def _sound(rng: np.random.Generator) -> tuple[str, Samples]:
    """One of the kinds but speech, as long as it is heard: a whole number of milliseconds."""
    kind = str(rng.choice(sorted(MAKERS)))
    sound = MAKERS[kind](rng, round(rng.uniform(shortest_s(kind), MAX_SOUND_S) * RATE))
    sound = ramped(sound, 0.005, 0.03) * np.float32(db(rng.uniform(*LEVELS_DB)) / max(loudness(sound), 1e-6))
    heard = np.flatnonzero(np.abs(sound) > np.abs(sound).max() * db(-OVER_DB))
    return kind, sound[: (heard[-1] // 16 + 1) * 16]


@dataclass
class Sampled:
    """Processor time and memory, twice a second."""

    at_s: list[float] = field(default_factory=list)  # of the audio
    clock_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)

    def take(self, at_s: float) -> None:
        """One more, if it is time."""
        if not self.clock_s or monotonic() >= self.clock_s[-1] + 0.5:
            self.at_s.append(at_s)
            self.clock_s.append(monotonic())
            self.cpu_s.append(process_time())
            self.resident_bytes.append(4096 * int(Path("/proc/self/statm").read_text("ascii").split()[1]))

    def share_of_a_core(self, spans: Sequence[tuple[float, float]]) -> float:
        """Of the processor, within these times."""
        at, clock, cpu = map(np.array, (self.at_s, self.clock_s, self.cpu_s))
        used = clocked = 0.0
        for start_s, end_s in spans:
            places = np.flatnonzero((at >= start_s) & (at <= end_s))
            if len(places) > 1:
                used += cpu[places[-1]] - cpu[places[0]]
                clocked += clock[places[-1]] - clock[places[0]]
        return float(used / clocked) if clocked else float("nan")


def measure(bundle: Bundle, threads: int, minutes: float, plan: WindowPlan, tokens: int) -> dict[str, Any]:
    """Captions of a room at the speed of time."""
    room, sampled, heard = Room(), Sampled(), list[tuple[Heard, float]]()
    options = EngineOptions(weights="mapped").changed(threads=threads)
    with Engine.open(bundle.folder, options=options, batch=1, check_sha256=False) as engine:
        source = FileSource((room.blocks(60 * minutes), RATE), RATE, SystemClock())
        ask = captions_of(engine, "a room", None, max_new_tokens=tokens)
        listening = Listening(source, engine.parts.audio, plan, ask, waits=False)
        for one in listening.run(lambda: sampled.take(listening.seconds)):
            without = replace(one, window=replace(one.window, embeddings=None))  # as a user's program keeps it
            heard.append((without, listening.seconds + source.behind_s()))
    waits = _waits(room.events, heard)
    if not waits:
        raise BenchmarkError(f"no sound has a caption after {minutes:g} minutes; listen longer with --minutes")
    captions = [one.caption for one, _ in heard if one.caption]
    shown = [one for one, _ in heard if one.caption and not one.repeats]
    silences = [(start_s + SETTLING_S, end_s - 1.0) for start_s, end_s in room.silences]
    return {
        "minutes": minutes, "window_s": plan.window_s, "hop_s": plan.hop_s, "tokens": tokens,
        "events": len(room.events), "captions": len(captions), "dropped": listening.tally.dropped,
        "left_out": listening.tally.repeats, "repeats": _repeats(shown), "shown": len(shown),
        "named": _named(room.events, heard),
        "wait_s": summed_up(waits), "wait_p95_s": float(np.percentile(waits, 95)),
        "lag_s": max(one.late_s or 0.0 for one, _ in heard),
        "decoding_s": max(caption.timings.total_ms for caption in captions) / 1000,
        "silence_cores": sampled.share_of_a_core(silences), "cores": sampled.share_of_a_core([(0.0, 60 * minutes)]),
        "resident_bytes": sampled.resident_bytes,
    }  # fmt: skip


def _waits(events: Sequence[Event], heard: Sequence[tuple[Heard, float]]) -> list[float]:
    """From the end of each sound to the caption of the window that holds it."""
    ends = [(one.window.start_s, one.window.end_s, now_s) for one, now_s in heard if one.caption]
    waits = []
    for event in events:
        times = [now_s for start_s, end_s, now_s in ends if start_s < event.end_s <= end_s + 0.1]
        if times:
            waits.append(min(times) - event.end_s)
    return waits


def _repeats(shown: Sequence[Heard]) -> int:
    """Captions that say what the one before says, of a window that it touches."""
    return sum(
        a.caption is not None and b.caption is not None and a.caption.text == b.caption.text
        and b.window.start_s <= a.window.end_s
        for a, b in pairwise(shown)
    )  # fmt: skip


def _named(events: Sequence[Event], heard: Sequence[tuple[Heard, float]]) -> float:
    """Share of the sounds that a caption names; of a model with random weights, 0."""
    said = [(one.window, named_kinds(one.caption.text)) for one, _ in heard if one.caption]
    found = [
        any(
            event.kind in kinds
            for window, kinds in said
            if window.start_s < event.end_s and window.end_s > event.start_s
        )
        for event in events
    ]
    return float(np.mean(found))


def growth_mb(record: Record) -> float:
    """Memory an hour, from when all had settled."""
    memory = record["resident_bytes"]
    kept = memory[int(SETTLED * len(memory)) :]
    size = max(1, len(kept) // 10)
    grown_mb = float(np.median(kept[-size:]) - np.median(kept[:size])) / 1e6
    return grown_mb / (float(record["minutes"]) / 60 * (1 - SETTLED) * 0.9)


def beyond_s(record: Record) -> float:
    """The longest lag, beyond a window and its decoding."""
    return float(record["lag_s"] - record["window_s"] - record["decoding_s"])


def headline(record: Record) -> dict[str, float]:
    """What the targets are about."""
    return {
        "wait_p50_s": record["wait_s"]["p50"], "wait_p95_s": record["wait_p95_s"], "lag_s": record["lag_s"],
        "dropped": record["dropped"], "silence_cores": record["silence_cores"],
        "repeats_share": record["repeats"] / max(1, record["shown"]), "growth_mb_an_hour": growth_mb(record),
        "named_share": record["named"],
    }  # fmt: skip


def section(record: Record) -> Section:
    """Waits, what silence costs, and memory."""
    rows = [[
        f"{record['minutes']:g}", str(record["events"]), str(record["shown"]), str(record["dropped"]),
        f"{record['wait_s']['p50']:.2f}", f"{record['wait_p95_s']:.2f}", f"{record['lag_s']:.2f}",
        f"{record['silence_cores']:.1%}", f"{record['cores']:.1%}", f"{growth_mb(record):.1f}",
    ]]  # fmt: skip
    about = (
        f"Windows of at most {record['window_s']:g} s, every {record['hop_s']:g} s while a sound lasts; answers of at "
        f"most {record['tokens']} tokens. The wait is from the end of a sound to its caption. "
        f"{record['left_out']} captions said what the one before did, and were left out."
    )
    head = (
        "minutes", "sounds", "captions", "dropped", "wait, s: p50", "p95", "longest lag, s", "a core in silence",
        "in all", "memory grew, MB an hour",
    )  # fmt: skip
    plot = bars([Panel(bars_of({"wait": record["wait_s"]}, 1, ("wait",)), "seconds")], "From a sound to its caption")
    return Section(f"Listening, {record['model']}", f"{about}\n\n{table(head, rows)}", plot)


TARGETS = [
    Target("caption behind the end of a sound, p50", "the speed of time", 1.5, "seconds", SMALL,
           lambda record: record["wait_s"]["p50"], at_most=True),
    Target("caption behind the end of a sound, p95", "the speed of time", 3.0, "seconds", SMALL,
           lambda record: record["wait_p95_s"], at_most=True),
    Target("longest lag", "a window and its decoding", 0.0, "seconds", SMALL, beyond_s, at_most=True),
    Target("processor in silence", "one core", 0.05, "share", SMALL,
           lambda record: record["silence_cores"], at_most=True),
    Target("captions that repeat the one before", "all captions", 0.01, "share", SMALL,
           lambda record: record["repeats"] / max(1, record["shown"]), at_most=True),
    Target("memory that grows in an hour of listening", "when it had settled", 5, "MB", SMALL, growth_mb, at_most=True),
]  # fmt: skip
BENCHMARK = Benchmark("listening", headline, section, targets=TARGETS, rank=4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if it cannot be measured."""
    options = parser(__doc__, "bundle")
    options.add_argument("--minutes", type=float, default=MINUTES)
    options.add_argument("--window", type=float, default=WINDOW_S)
    options.add_argument("--hop", type=float, default=HOP_S)
    options.add_argument("--tokens", type=int, default=TOKENS, help="longest answer; random weights always take all")
    given = options.parse_args(arguments)
    plan = WindowPlan(given.window, given.hop)
    return run(BENCHMARK, given, lambda bundle: measure(bundle, given.threads, given.minutes, plan, given.tokens))


if __name__ == "__main__":
    sys.exit(main())
