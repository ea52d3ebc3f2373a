"""How long clips of mixed length take: one by one, in static batches, and by continuous batching.

    python -m benchmarks.speed.throughput BUNDLE

32 clips of 1 to 30 s, said about in 5 to 60 tokens each, greedily. A static batch waits for its longest answer before
the next one begins. One by one and in static batches, weights are repacked, which is the fastest there. The last line
is JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.records.benchmark import SMALL, Benchmark, Target, parser, run
from benchmarks.records.plots import Panel, bars, bars_of
from benchmarks.records.record import BenchmarkError, Record
from benchmarks.records.section import Section, table
from benchmarks.records.turns import field, take_turns, times
from benchmarks.synthetic.noise import GREEDY, RATE_HZ, noise
from dasheng_edge.runtime import Bundle, Captioner
from dasheng_edge.runtime.engine.job import CaptionScheduler
from dasheng_edge.runtime.engine.request import Request
from dasheng_edge.runtime.engine_options import DEFAULT_BATCH, EngineOptions
from dasheng_edge.runtime.errors import DashengEdgeError

CLIPS, SHORTEST_S, LONGEST_S, MIN_TOKENS, MAX_TOKENS = 32, 1, 30, 5, 60
STATIC = 8
SIZES = (8, 16, 32)
ONE, STATIC_NAME = "one by one", f"static batches of {STATIC}"
Turn = dict[str, float]  # total_s, and first_s: until the first answer


def size_name(size: int) -> str:
    """Of the variant in which so many answers are made together."""
    return f"continuous, {size} together"


@dataclass(frozen=True)
class Turns:
    """The ways to caption the same requests; each returns what it took."""

    one_by_one: Captioner  # with repacked weights
    together: Captioner  # with weights as they are stored
    requests: Sequence[Request]

    def alone(self) -> Turn:
        """One request after another, each on its own."""
        start, first_s = perf_counter(), 0.0
        for one in self.requests:
            self.one_by_one.caption(one.audio, max_new_tokens=one.max_new_tokens, sampling=GREEDY)
            first_s = first_s or perf_counter() - start
        return {"first_s": first_s, "total_s": perf_counter() - start}

    def static(self) -> Turn:
        """Batches, each of which begins when all answers of the one before have ended."""
        start, first_s = perf_counter(), 0.0
        for begin in range(0, len(self.requests), STATIC):
            self._scheduled(self.one_by_one, self.requests[begin : begin + STATIC], STATIC)
            first_s = first_s or perf_counter() - start
        return {"first_s": first_s, "total_s": perf_counter() - start}

    def continuous(self, size: int) -> Turn:
        """A place that is left is taken at once."""
        return self._scheduled(self.together, self.requests, size)

    @staticmethod
    def _scheduled(captioner: Captioner, requests: Sequence[Request], size: int) -> Turn:
        start, first_s = perf_counter(), 0.0
        scheduler = CaptionScheduler(captioner.bundle, captioner.parts, size)
        jobs = [scheduler.job(request) for request in requests]
        for job in jobs:
            scheduler.add(job)
        try:
            while len(scheduler):
                scheduler.advance(lambda _: None)
                first_s = first_s or (perf_counter() - start if any(job.ended for job in jobs) else 0.0)
        finally:
            scheduler.close()
        for job in jobs:
            if isinstance(result := job.result(), DashengEdgeError):
                raise result
        return {"first_s": first_s, "total_s": perf_counter() - start}


def mixed_requests(captioner: Captioner, count: int) -> list[Request]:
    """Noise of mixed length, each with a limit of tokens that the model, with random weights, does not end before.

    Raises:
        BenchmarkError: it ends its text too early on every clip.
    """
    lengths, seed = np.random.default_rng(0), 0
    requests: list[Request] = []
    while len(requests) < count:
        audio = (noise(float(lengths.uniform(SHORTEST_S, LONGEST_S)), seed), RATE_HZ)
        asked = Request(audio, None, None, int(lengths.integers(MIN_TOKENS, MAX_TOKENS + 1)), GREEDY)
        said = captioner.caption(audio, max_new_tokens=asked.max_new_tokens, sampling=GREEDY)
        seed += 1
        if len(said.tokens) >= MIN_TOKENS:
            requests.append(replace(asked, max_new_tokens=len(said.tokens)))
        elif seed >= 3 * count:
            raise BenchmarkError(f"{captioner.bundle.folder.name} says too little about {seed} clips of noise")
    return requests


def measure(one_by_one: Captioner, together: Captioner, count: int, rounds: int) -> dict[str, Any]:
    """Seconds of all clips and until the first answer, for each variant."""
    requests = mixed_requests(one_by_one, count)
    turns = Turns(one_by_one, together, requests)
    variants: dict[str, Callable[[], Turn]] = {ONE: turns.alone, STATIC_NAME: turns.static}
    variants |= {size_name(size): lambda size=size: turns.continuous(size) for size in SIZES}  # type: ignore[misc]
    taken = take_turns(variants, rounds, warm_up=0)
    return {
        "clips": count, "tokens": sum(one.max_new_tokens for one in requests), "default_batch": DEFAULT_BATCH["cpu"],
        "audio_s": sum(len(one.audio[0]) for one in requests if isinstance(one.audio, tuple)) / RATE_HZ,
        "seconds": {name: field(rows, "total_s") for name, rows in taken.items()},
        "first_s": {name: field(rows, "first_s") for name, rows in taken.items()},
    }  # fmt: skip


def headline(record: Record) -> dict[str, float]:
    """How many times as fast as static batches, and how soon the first answer is there, next to one by one."""
    ours = size_name(record["default_batch"])
    return {
        f"{ours}, times as fast as {STATIC_NAME}": _gain(record),
        f"{ours}, first answer after, times that of {ONE}": _delay(record),
    }


def section(record: Record) -> Section:
    """Clips of mixed length, one after another and together."""
    seconds, first_s, count = record["seconds"], record["first_s"], record["clips"]
    rows = [
        [
            name, f"{timed['p50']:.1f}", f"{timed['p90']:.1f}", f"{60 * count / timed['p50']:.0f}",
            f"{times(seconds[ONE], timed):.2f}", f"{first_s[name]['p50']:.1f}",
        ]
        for name, timed in seconds.items()
    ]  # fmt: skip
    about = (
        f"{count} clips of {SHORTEST_S} to {LONGEST_S} s, {record['audio_s']:.0f} s in all, said about in "
        f"{record['tokens']} tokens. A static batch waits for its longest answer; continuously, an answer that ends "
        "leaves its place to the next. One by one and in static batches with repacked weights, continuously with "
        "weights as they are stored: each is faster so."
    )
    head = ("", "p50, s", "p90, s", "clips a minute", "times as fast as one by one", "first answer, s")
    title = f"{count} clips of mixed length with {record['model']}"
    panel = Panel(bars_of(seconds, 1, (size_name(record["default_batch"]),)), "seconds")
    return Section(f"Throughput, {record['model']}", f"{about}\n\n{table(head, rows)}", bars([panel], title))


def summary(record: Record) -> dict[str, str]:
    """Clips a minute, as they are captioned by default."""
    timed = record["seconds"][size_name(record["default_batch"])]
    return {"clips of 1 to 30 s captioned in a minute": f"{60 * record['clips'] / timed['p50']:.0f}"}


def _gain(record: Record) -> float:
    """Over static batches."""
    return times(record["seconds"][STATIC_NAME], record["seconds"][size_name(record["default_batch"])])


def _delay(record: Record) -> float:
    """Of the first answer, over one by one."""
    return times(record["first_s"][size_name(record["default_batch"])], record["first_s"][ONE])


TARGETS = [
    Target("captions of clips of mixed length, continuously", STATIC_NAME, 1.25, "times", SMALL, _gain),
    Target("first answer of many, continuously", ONE, 1.5, "times", SMALL, _delay, at_most=True),
]
BENCHMARK = Benchmark("throughput", headline, section, summary, TARGETS, rank=3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if it cannot be measured."""
    options = parser(__doc__, "bundle")
    options.add_argument("--clips", type=int, default=CLIPS)
    given = options.parse_args(arguments)

    def measured(bundle: Bundle) -> dict[str, Any]:
        engines = [EngineOptions(weights=layout).changed(threads=given.threads) for layout in (None, "mapped")]
        with (
            Captioner.open(bundle.folder, options=engines[0], check_sha256=False) as one_by_one,
            Captioner.open(bundle.folder, options=engines[1], check_sha256=False) as together,
        ):
            return measure(one_by_one, together, given.clips, given.rounds)

    return run(BENCHMARK, given, measured)


if __name__ == "__main__":
    sys.exit(main())
