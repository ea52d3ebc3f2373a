"""How long captions take beside other programs: none, busy loops, and loops that come and go.

    python -m benchmarks.speed.busy BUNDLE [--audio FILE --clips 40]

A clip is captioned over and over beside Python loops that take a core each, with threads that follow
the cores that the loops leave (as shipped), with as many threads as there are cores, with one, and with as many whose
OpenMP sleeps at once instead of waiting in a loop. Work that takes longer than `MAX_S` is broken off, and its time is
what all of it would have taken at that rate. The last line is JSON.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.workers import Worker
from benchmarks.records.benchmark import SMALL, Benchmark, Target, parser, run
from benchmarks.records.plots import Panel, bars, bars_of
from benchmarks.records.record import Record
from benchmarks.records.section import Section, table
from benchmarks.records.turns import summed_up, take_turns
from benchmarks.synthetic.noise import RATE_HZ
from dasheng_edge.runtime import Bundle
from dasheng_edge.runtime.audio.read import read_audio

CLIP_S, CLIPS, TOKENS = 1.0, 1, 40
MAX_S = 4.0  # of one turn; a turn that is slower than others by so much needs no third digit
SETTLE_S = 0.3  # for loops to start, and to be seen by nobody but the one that is measured
MICRO = "micro"
FOLLOW, STAY, ONE, SLEEP = "threads follow", "threads stay", "one thread", "threads stay, GOMP_SPINCOUNT=0"
_LOOP = """
import time
while True:
    end = time.monotonic() + {period}
    while time.monotonic() < end:
        pass
    time.sleep({period} if {pauses} else 0)
"""


@dataclass(frozen=True)
class Beside:
    """What runs beside the captions."""

    loops: int
    nice: int = 0
    period_s: float = 0.0  # so long they work, and so long they sleep; 0: they never sleep

    @property
    def name(self) -> str:
        """As the table has it."""
        nice = f" at nice {self.nice}" if self.nice else ""
        comes = f", every {self.period_s:g} s for {self.period_s:g} s" if self.period_s else ""
        return f"{self.loops or 'no'} loop{'' if self.loops == 1 else 's'}{nice}{comes}"

    @contextmanager
    def running(self) -> Generator[None]:
        """The loops run meanwhile."""
        code = _LOOP.format(period=self.period_s or 60, pauses=bool(self.period_s))
        nice = ["nice", "-n", str(self.nice)] if self.nice else []
        with ExitStack() as stack:
            for _ in range(self.loops):
                loop = stack.enter_context(subprocess.Popen([*nice, sys.executable, "-c", code]))
                stack.callback(loop.kill)
            time.sleep(SETTLE_S)
            yield


QUIET = Beside(0)
LOADS = (QUIET, Beside(1), Beside(2), Beside(4), Beside(1, nice=5), Beside(2, period_s=2.0))


def measure(bundle: Bundle, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of all clips, for each load and each way to choose threads."""
    threads, clips, tokens, rounds = given.threads, given.clips, given.tokens, given.rounds
    ways: Mapping[str, tuple[list[str], dict[str, str]]] = {
        FOLLOW: (["--threads", str(threads)], {}),
        STAY: (["--threads", str(threads), "--steady"], {}),
        ONE: (["--threads", "1", "--steady"], {}),
        SLEEP: (["--threads", str(threads), "--steady"], {"GOMP_SPINCOUNT": "0"}),
    }
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.npy"
        workers = {
            name: stack.enter_context(Worker("bundle_worker", bundle.folder, *arguments, environment=environment))
            for name, (arguments, environment) in ways.items()
        }
        if given.audio is None:
            workers[ONE].ask(talkative=CLIP_S, tokens=tokens, save=str(clip))
        else:
            np.save(clip, np.concatenate(list(read_audio(given.audio, sample_rate_hz=RATE_HZ))))
        clip_s = round(len(np.load(clip)) / RATE_HZ, 2)
        work = {"repeat": str(clip), "clips": clips, "tokens": tokens}
        pieces = 0
        for worker in workers.values():  # which warms them up
            pieces = worker.ask(**work, at_most_s=1e9)["pieces"]

        def turn(worker: Worker) -> float:
            done = worker.ask(**work, at_most_s=MAX_S)
            return float(done["seconds"] * pieces / max(1, done["pieces"]))

        turns = {name: partial(turn, worker) for name, worker in workers.items()}
        seconds: dict[str, Any] = {}
        for load in LOADS:
            with load.running():
                taken = take_turns(turns, rounds, warm_up=0)
            seconds[load.name] = {name: summed_up(values) for name, values in taken.items()}
    return {"clips": clips, "clip_s": clip_s, "pieces": pieces, "seconds": seconds}


def behind(record: Record, load: str) -> float:
    """How many times as long threads that follow take as the best way beside this load, by medians."""
    ways = {name: timed["p50"] for name, timed in record["seconds"][load].items()}
    return float(ways[FOLLOW] / min(ways.values()))


def worst(record: Record) -> float:
    """The same where it is most."""
    return max(behind(record, load) for load in record["seconds"])


def cost(record: Record) -> float:
    """What it costs on a quiet machine to follow, as a share."""
    ways = record["seconds"][QUIET.name]
    return float(ways[FOLLOW]["p50"] / ways[STAY]["p50"] - 1)


def headline(record: Record) -> dict[str, float]:
    """By how much threads that follow are behind the best way."""
    return {f"times the best, {load}": behind(record, load) for load in record["seconds"]} | {
        "cost_on_a_quiet_machine": cost(record)
    }


def section(record: Record) -> Section:
    """A row for each way, a column for each load."""
    loads, clips = record["seconds"], record["clips"]
    ways = list(next(iter(loads.values())))
    rows = [[way, *(f"{loads[load][way]['p50']:.2f}" for load in loads)] for way in ways]
    rows.append([f"{FOLLOW}, times the best", *(f"{behind(record, load):.2f}" for load in loads)])
    count = f"{clips} clip{'' if clips == 1 else 's'}"
    about = (
        f"Seconds for {count} of {record['clip_s']:g} s with {record['pieces']} pieces of text in all, on "
        f"{record['threads']} threads or one, medians; beside Python loops that each keep a core busy. Threads that "
        "follow are what the runtime does: before each step of the decoder, no more than others leave cores."
    )
    text = f"{about}\n\n{table(('beside', *loads), rows)}"
    title = f"{count} of {record['clip_s']:g} s beside busy loops, {record['model']}"
    panels = [Panel(bars_of(timed, 1, (FOLLOW,)), f"{load}: seconds") for load, timed in loads.items()]
    return Section(f"Beside other programs, {record['model']}", text, bars(panels, title))


TARGETS = [
    target
    for model in (MICRO, SMALL)
    for target in (
        Target(f"captions beside other programs, {model}", "the best number of threads", 1.15, "times", model, worst,
               at_most=True),
        Target(f"what following costs on a quiet machine, {model}", "threads that stay", 0.02, "share", model, cost,
               at_most=True),
    )
]  # fmt: skip
BENCHMARK = Benchmark("busy", headline, section, targets=TARGETS, rank=4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if it cannot be measured."""
    options = parser(__doc__, "bundle")
    options.add_argument("--audio", type=Path, help=f"the clip; default: {CLIP_S:g} s of noise")
    options.add_argument("--clips", type=int, default=CLIPS, help="how many are captioned in one turn")
    options.add_argument("--tokens", type=int, default=TOKENS, help="of each caption at most; of noise, exactly")
    given = options.parse_args(arguments)
    return run(BENCHMARK, given, lambda bundle: measure(bundle, given))


if __name__ == "__main__":
    sys.exit(main())
