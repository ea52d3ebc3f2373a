"""Thousands of mutated inputs, each used in a process with limits of time and memory, and what became of them.

    python -m tests.fuzz --audio 300 --commands 20 --bundles 100 --caches 20 --checkpoints 60 --seed 1

A case is made from the seed, its kind and its number alone, so that a run can be repeated. Whatever ends a process,
takes longer than its limit (20 s, or 3 minutes where it exports), raises what is none of ours or gives a wrong answer
is written, with its input, to `--keep`; then the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.fixtures.places import REPOSITORY

from .worker import generator, maker

KINDS = ("audio", "commands", "bundles", "caches", "checkpoints")
START_S = 120.0  # to import and to make what is mutated
BAD = ("raw", "wrong", "signal", "hang")


@dataclass
class Tally:
    """What became of the cases of one kind."""

    kind: str
    seed: int
    keep: Path
    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    rss: list[tuple[int, int]] = field(default_factory=list)  # of each process, first and last, in bytes
    seconds: float = 0.0

    def add(self, number: int, what: str, end: dict[str, Any]) -> None:
        """Count a case, and keep its input if it is bad."""
        self.counts[end["outcome"]] += 1
        if end["outcome"] == "refused":
            self.errors[end["error"]] += 1
        if end["outcome"] in BAD:
            self._keep(number, what, end)

    def _keep(self, number: int, what: str, end: dict[str, Any]) -> None:
        folder = self.keep / f"{self.kind}-{self.seed}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        maker(self.kind)(generator(self.kind, self.seed, number), folder)
        (folder / "what.json").write_text(json.dumps({"what": what, **end}, indent=1), encoding="utf-8")
        print(f"{self.kind} {number}: {end['outcome']}: {what}: {end.get('error', '')}", file=sys.stderr, flush=True)

    @property
    def bad(self) -> int:
        """Cases that must not be."""
        return sum(self.counts[name] for name in BAD)


def go_through(tally: Tally, first: int, stop: int, step: int) -> None:
    """All cases of a stripe, in as many processes as it takes."""
    while first < stop:
        last = _one_process(tally, first, stop, step)
        if last is None:
            return
        first = last + step


def _one_process(tally: Tally, first: int, stop: int, step: int) -> int | None:
    """Cases from `first` on; the number of the case that ended the process, or None if all were gone through."""
    command = [sys.executable, "-m", "tests.fuzz.worker", tally.kind, *map(str, (tally.seed, first, stop, step))]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=said, text=True)
        assert process.stdout is not None
        lines, begun, rss = _Lines(process.stdout), None, []
        try:
            while (line := lines.next(begun["limit_s"] if begun else START_S)) is not None:
                told = json.loads(line)
                if "number" in told:
                    begun = told
                elif begun is not None:
                    rss += [told.pop("rss")] if "rss" in told else []
                    tally.add(begun["number"], begun["what"], told)
                    begun = None
            hung = lines.waiting
            if not hung:
                process.wait(START_S)
        finally:
            process.kill()
            status = process.wait()
        if rss:
            tally.rss.append((rss[0], rss[-1]))
        if begun is None:
            if status or hung:
                said.seek(0)
                raise RuntimeError(f"a worker ended with {status} between two cases: {said.read()[-2000:]!r}")
            return None
        said.seek(0)
        words = said.read()[-300:].decode("utf-8", "replace")
        end = {"outcome": "hang"} if hung else {"outcome": "signal", "error": f"status {status}: {words}"}
        tally.add(begun["number"], begun["what"], end)
        return int(begun["number"])


class _Lines:
    """Lines of a pipe, each waited for a limited time."""

    def __init__(self, pipe: IO[str]) -> None:
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.waiting = False  # whether the last wait was in vain
        threading.Thread(target=self._read, args=(pipe,), daemon=True).start()

    def _read(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._lines.put(line)
        self._lines.put(None)

    def next(self, timeout_s: float) -> str | None:
        """None at the end, or if nothing came in time; while all is suspended, no time passes."""
        for _ in range(math.ceil(timeout_s)):
            with suppress(queue.Empty):
                return self._lines.get(timeout=1)
        self.waiting = True
        return None


def run_kind(kind: str, seed: int, count: int, jobs: int, keep: Path) -> Tally:
    """Cases 0 to `count` of a kind, in several processes."""
    tally, start = Tally(kind, seed, keep), time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(go_through, tally, first, count, jobs) for first in range(jobs)]:
            done.result()
    tally.seconds = time.perf_counter() - start
    return tally


def rows(tallies: list[Tally]) -> Iterator[str]:
    """The table."""
    names = ("taken", "refused", *BAD)
    yield f"{'kind':12}{'cases':>8}" + "".join(f"{name:>9}" for name in names) + f"{'seconds':>9}  memory, MB"
    for tally in tallies:
        counts = "".join(f"{tally.counts[name]:9}" for name in names)
        grown = "  ".join(f"{first / 1e6:.0f} to {last / 1e6:.0f}" for first, last in tally.rss[:2])
        yield f"{tally.kind:12}{tally.counts.total():8}{counts}{tally.seconds:9.0f}  {grown}"


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 if a case is bad."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N", help="mutated inputs of this kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--keep", type=Path, default=REPOSITORY / "build" / "fuzz", help="folder of what went wrong")
    given = parser.parse_args(arguments)
    wanted: dict[str, int] = {kind: getattr(given, kind) for kind in KINDS if getattr(given, kind)}
    tallies = [run_kind(kind, given.seed, count, given.jobs, given.keep) for kind, count in wanted.items()]
    print("\n".join(rows(tallies)))
    print(json.dumps({"seed": given.seed, **{tally.kind: dict(tally.counts) for tally in tallies}}))
    return int(any(tally.bad for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
