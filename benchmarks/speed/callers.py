"""Many callers at once: does each get its own answer, how long does it wait, and does memory stay where it was?

    python -m benchmarks.speed.callers BUNDLE FOLDER

So many threads each caption a clip of a folder, then another, for a minute, with one engine. The answers are held
against those of each clip alone. The last line is JSON.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np

from benchmarks.records.benchmark import Benchmark, Target, parser, run
from benchmarks.records.plots import Panel, bars, bars_of
from benchmarks.records.record import BenchmarkError, Record
from benchmarks.records.section import Section, table
from benchmarks.records.turns import summed_up
from benchmarks.synthetic.noise import GREEDY
from dasheng_edge.runtime import Bundle, Captioner, Engine
from dasheng_edge.runtime.engine_options import EngineOptions

CALLERS, SECONDS = 100, 60.0
SETTLED = 0.25  # of the time, after which memory should no longer grow
MODEL = "micro"


@dataclass
class Tally:
    """What the callers saw."""

    waits_s: list[float] = field(default_factory=list)
    equal: int = 0
    different: int = 0
    errors: int = 0
    asked: int = 0


def measure(bundle: Bundle, clips: Sequence[Path], threads: int, callers: int, seconds: float) -> dict[str, Any]:
    """Waits, answers and memory of so many callers for so long."""
    options = EngineOptions(weights="mapped").changed(threads=threads)
    with Captioner.open(bundle.folder, options=options, check_sha256=False) as captioner:
        alone = {clip: captioner.caption(clip, sampling=GREEDY).tokens for clip in clips}
    tally, lock, memory = Tally(), threading.Lock(), list[int]()
    with Engine.open(bundle.folder, options=options, check_sha256=False) as engine:
        end = monotonic() + seconds
        pool = [
            threading.Thread(target=_call, args=(engine, alone, random.Random(seed), end, tally, lock))
            for seed in range(callers)
        ]
        for thread in pool:
            thread.start()
        while monotonic() < end:
            sleep(min(1.0, seconds / 20))
            memory.append(_resident_bytes())
        for thread in pool:
            thread.join()
    if not tally.waits_s:
        raise BenchmarkError(f"no caller had an answer in {seconds:g} s; give them longer with --seconds")
    return {
        "callers": callers, "asked": tally.asked, "equal": tally.equal, "different": tally.different,
        "errors": tally.errors, "batch": engine.batch, "wait_s": summed_up(tally.waits_s), "resident_bytes": memory,
    }  # fmt: skip


def _call(
    engine: Engine, alone: Mapping[Path, Sequence[int]], chosen: random.Random, end: float, tally: Tally,
    lock: threading.Lock,
) -> None:  # fmt: skip
    while monotonic() < end:
        clip, start = chosen.choice(list(alone)), monotonic()
        with lock:
            tally.asked += 1
        try:
            tokens: Sequence[int] | None = engine.submit(clip, sampling=GREEDY).result().tokens
        except Exception:  # noqa: BLE001  # counted
            tokens = None
        with lock:
            tally.waits_s.append(monotonic() - start)
            tally.errors += tokens is None
            tally.equal += tokens == alone[clip]
            tally.different += tokens is not None and tokens != alone[clip]


def _resident_bytes() -> int:
    """Linux only."""
    return 4096 * int(Path("/proc/self/statm").read_text("ascii").split()[1])


def spread(record: Record) -> float:
    """The longest wait, next to the median."""
    return float(max(record["wait_s"]["values"]) / record["wait_s"]["p50"])


def growth_mb(record: Record) -> float:
    """Memory at the end, beyond what it was when all had settled."""
    memory = record["resident_bytes"]
    return float(np.median(memory[-5:]) - np.median(memory[int(SETTLED * len(memory)) :][:5])) / 1e6


def headline(record: Record) -> dict[str, float]:
    """How many answers were equal, and how evenly callers waited."""
    return {
        "asked": record["asked"], "equal": record["equal"], "max_over_median_wait": spread(record),
        "growth_mb": growth_mb(record),
    }  # fmt: skip


def section(record: Record) -> Section:
    """Waits, answers and memory."""
    rows = [[
        str(record["callers"]), str(record["asked"]), str(record["equal"]), str(record["different"]),
        str(record["errors"]), f"{record['wait_s']['p50']:.2f}", f"{max(record['wait_s']['values']):.2f}",
        f"{growth_mb(record):.1f}",
    ]]  # fmt: skip
    about = (
        f"Each of {record['callers']} threads captions one clip after another with one engine, {record['batch']} "
        "answers together. Equal are those that have the tokens of the clip alone."
    )
    head = ("callers", "asked", "equal", "different", "errors", "median wait, s", "longest, s", "memory grew, MB")
    plot = bars(
        [Panel(bars_of({"wait": record["wait_s"]}, 1, ("wait",)), "seconds")], f"Waits of {record['callers']} callers"
    )
    return Section(f"Many callers, {record['model']}", f"{about}\n\n{table(head, rows)}", plot)


TARGETS = [
    Target(
        "answers of 100 callers that differ or fail", "each clip alone", 0, "tokens", MODEL,
        lambda record: record["different"] + record["errors"] + record["asked"] - len(record["wait_s"]["values"]),
        at_most=True,
    ),
    Target("longest wait of 100 callers", "the median wait", 3, "times", MODEL, spread, at_most=True),
]  # fmt: skip
BENCHMARK = Benchmark("callers", headline, section, targets=TARGETS, rank=3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if it cannot be measured."""
    options = parser(__doc__, "bundle", "folder")
    options.add_argument("--callers", type=int, default=CALLERS)
    options.add_argument("--seconds", type=float, default=SECONDS)
    given = options.parse_args(arguments)
    clips = sorted(path for path in given.folder.glob("*") if path.suffix in (".flac", ".wav"))
    return run(BENCHMARK, given, lambda bundle: measure(bundle, clips, given.threads, given.callers, given.seconds))


if __name__ == "__main__":
    sys.exit(main())
