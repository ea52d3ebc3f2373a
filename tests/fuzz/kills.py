"""Commands that write, killed at any moment: nothing that was there is lost, nothing half opens, the next run succeeds.

    python -m tests.fuzz.kills --count 300 --seed 1

A command replaces what an earlier run of it made. Half of them are killed by the clock, with all their children; the
others by themselves, right before one of their operations on files, which makes the moments between two of them as
likely as the long calculations. Then what had the name must be there, older or newer, and whole; no other folder may
open as a bundle; and the same command, given again, must succeed and leave nothing else behind. Each runs in a folder
of its own, so that several may run at once. What does not hold is kept in `--keep` as it was after the kill, with the
command; then the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from dasheng_edge.runtime.atomic_output import unfinished
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.bundle.manifest import MANIFEST
from dasheng_edge.runtime.cli import app
from dasheng_edge.runtime.errors import DashengEdgeError
from tests.fixtures.places import REPOSITORY, SMALLEST_BUNDLE

LIMIT_S = 240  # of a run; the longest takes 20 s alone on a core
BAD = ("lost", "half", "failed", "stale", "hang")
CLIPS = REPOSITORY / "benchmarks" / "micro" / "clips"
# What the commands load on the way. It is loaded once: each run is a fork of a process that has opened nothing yet.
LOADED = (
    "llama_cpp", "onnxruntime", "torch", "transformers", "dasheng_edge.export.bundle_export", "matplotlib.pyplot",
    "dasheng_edge.quant.bundle_compare", "dasheng_edge.quant.bundle_quant", "dasheng_edge.runtime.embedder",
)  # fmt: skip
FORK = multiprocessing.get_context("fork") if sys.platform != "win32" else multiprocessing.get_context()


def _command(said: int, out: Path, last: int, words: list[str], cache: str) -> None:
    """In a fork: a command that ends before its nth operation on files in a folder, and says how many there were."""
    os.setsid()
    os.dup2(said, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.environ["DASHENG_EDGE_CACHE"] = cache
    os.chdir(REPOSITORY)
    done = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal done
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        here = str(out) in str(args) or "renameat2" in args
        if here and (writes or event.startswith(("os.", "shutil.", "ctypes.dlsym"))):
            done += 1
            if done == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.argv = ["dasheng-edge", *words]
    sys.addaudithook(hook)
    try:
        app.main()
    finally:
        print(f"operations {done}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Job:
    """A command, what it writes, and whether that is whole."""

    name: str
    weight: int  # how often it is killed, since some take long
    words: Callable[[Path, Path], list[str]]  # of the command: from the inputs, to the outputs
    made: str  # what the command makes, in the folder of outputs
    whole: Callable[[Path], object]  # raises where it is not
    anew: bool = False  # whether it is killed where there is none yet: it would not replace what is there


@dataclass(frozen=True)
class Run:
    """How a command ended."""

    status: int | None  # None: it took too long
    said: str
    seconds: float

    @property
    def operations(self) -> int:
        """On files, in the folder of outputs."""
        return int(self.said.rpartition("operations ")[2].split()[0]) if "operations " in self.said else 1


def _clips(inputs: Path) -> list[str]:
    return [str(path) for path in sorted((inputs / "clips").iterdir())]


def _whole_report(path: Path) -> None:
    json.loads((path / "report.json").read_text("utf-8"))
    assert (path / "report.html").read_text("utf-8").rstrip().endswith("</html>")


def _whole_embeddings(path: Path) -> None:
    with np.load(path) as arrays:
        assert len(arrays["mean"]) == len([arrays[f"frames_{index}"] for index in range(len(arrays["names"]))])


JOBS = (
    Job("embed", 6, lambda given, out: ["embed", str(SMALLEST_BUNDLE), *_clips(given), "--out", str(out / "made.npz"),
                                        "--overwrite"], "made.npz", _whole_embeddings),
    Job("caption", 6, lambda given, _: ["caption", str(SMALLEST_BUNDLE), *_clips(given), "--max-new-tokens", "4"],
        "cache", lambda path: next((path / "prefixes").glob("*.kv")), anew=True),
    Job("quantize", 5, lambda _, out: ["quantize", str(SMALLEST_BUNDLE), "--out", str(out / "made"), "--encoder",
                                       "int8", "--decoder", "Q8_0", "--overwrite"], "made", Bundle.open),
    Job("export", 2, lambda given, out: ["export", str(given / "checkpoint"), "--out", str(out / "made"), "--encoder",
                                         "fp32", "--decoder", "F16", "--overwrite"], "made", Bundle.open),
    Job("compare", 1, lambda given, out: ["compare", str(SMALLEST_BUNDLE), "fp32/Q8_0", "--clips", str(given / "clips"),
                                          "--out", str(out / "made"), "--max-new-tokens", "2"], "made", _whole_report),
)  # fmt: skip


def run(job: Job, inputs: Path, out: Path, *, operation: int = 0, after_s: float = 0.0) -> Run:
    """Run a command, and kill it before an operation, or after so many seconds with all its children, or not at all."""
    cache = str(out / "cache") if job.name == "caption" else "off"
    start = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = FORK.Process(target=_command, args=(said.fileno(), out, operation, job.words(inputs, out), cache))
        process.start()
        if after_s:
            process.join(after_s)
        for _ in range(0 if after_s else LIMIT_S):  # while all is suspended, no time passes
            if process.exitcode is None:
                process.join(1)
        status = process.exitcode
        with suppress(ProcessLookupError):  # children, which may be left where it killed itself, too
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        said.seek(0)
        if after_s and status is None:
            status = -signal.SIGKILL
        return Run(status, said.read().decode("utf-8", "replace"), time.monotonic() - start)


def problem(job: Job, out: Path) -> tuple[str, str] | None:
    """What is wrong after a kill."""
    try:
        for path in sorted(out.rglob(MANIFEST)):
            if path.parent != out / "made" and _opens(path.parent) and unfinished(path.parent):
                return "half", f"{path.parent.name} opens"
        job.whole(out / job.made)
    except Exception as error:  # noqa: BLE001  # of whatever kind
        return "lost", f"{type(error).__name__}: {error}"
    return None


def _opens(folder: Path) -> bool:
    try:
        Bundle.open(folder)
    except DashengEdgeError:
        return False
    return True


def left_over(before: set[str], out: Path) -> list[str]:
    """What is there that was not before, and is no output."""
    names = {str(path.relative_to(out)): path for path in out.rglob("*")}
    return sorted(
        name for name, path in names.items()
        if unfinished(path) or path.name.endswith(".lock") or ("/" not in name and name not in before)
    )  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What all kills start from: inputs, and for each command what an earlier run of it made, and how it ran."""

    inputs: Path
    made: dict[str, Path]
    runs: dict[str, Run]
    seed: int
    keep: Path

    def kill(self, number: int) -> tuple[str, str]:
        """The command, and what became of it when it was killed once."""
        chance = random.Random(f"{self.seed} {number}")
        job = chance.choices([job for job in JOBS if job.name in self.runs], [
            job.weight for job in JOBS if job.name in self.runs
        ])[0]  # fmt: skip
        usual, how = self.runs[job.name], chance.random()
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(temporary) / "out"
            out.mkdir() if job.anew else shutil.copytree(self.made[job.name], out)
            if chance.random() < 0.5:
                killed = run(job, self.inputs, out, operation=1 + int(how * usual.operations))
            else:
                killed = run(job, self.inputs, out, after_s=0.1 + how * usual.seconds)
            after = shutil.copytree(out, Path(temporary) / "after", symlinks=True)
            outcome, why = self._judged(job, out, killed)
            if outcome in BAD:
                kept = self.keep / f"{job.name}-{self.seed}-{number}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(after, kept / "out")
                (kept / "what.json").write_text(json.dumps({
                    "outcome": outcome, "why": why, "command": job.words(self.inputs, out), "said": killed.said[-3000:]
                }, indent=1), "utf-8")  # fmt: skip
                print(f"{job.name} {number}: {outcome}: {why}", file=sys.stderr, flush=True)
        return job.name, outcome

    def _judged(self, job: Job, out: Path, killed: Run) -> tuple[str, str]:
        if killed.status is None:
            return "hang", ""
        if not job.anew and (wrong := problem(job, out)):
            return wrong
        again = run(job, self.inputs, out)
        if again.status != 0:
            return ("hang" if again.status is None else "failed"), again.said[-1000:]
        if wrong := problem(job, out):
            return wrong
        if left := left_over({path.name for path in self.made[job.name].iterdir()}, out):
            return "stale", ", ".join(left)
        return "killed" if killed.status == -signal.SIGKILL else "ended before", ""


def prepare(folder: Path, names: list[str], seed: int, keep: Path) -> Bench:
    """Run each command twice, since the second time is how it is killed: it replaces what is there."""
    inputs = folder / "inputs"
    (inputs / "clips").mkdir(parents=True)
    for clip in sorted(CLIPS.glob("*.flac"))[:2]:
        shutil.copy(clip, inputs / "clips")
    if "export" in names:
        from tests.fixtures.tiny_checkpoint import write_tiny_checkpoint

        writing = FORK.Process(target=write_tiny_checkpoint, args=(inputs / "checkpoint",))  # threads outlive no fork
        writing.start()
        writing.join()
    bench = Bench(inputs, {}, {}, seed, keep)
    for job in JOBS:
        if job.name in names:
            out = folder / job.name
            out.mkdir()
            usual = run(job, inputs, out)
            if not job.anew:
                usual = run(job, inputs, out)
            if usual.status != 0:
                raise RuntimeError(f"{job.name} fails without being killed: {usual.said[-2000:]}")
            job.whole(out / job.made)
            bench.made[job.name], bench.runs[job.name] = out, usual
    return bench


def _one(bench: Bench, until: float, number: int) -> tuple[str, str] | None:
    return None if time.monotonic() > until else bench.kill(number)


def main() -> int:
    """Kill, count, and print one line of JSON."""
    parser = argparse.ArgumentParser(description="kills commands that write, and looks at what is left")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="commands that run at once")
    parser.add_argument("--jobs", nargs="+", default=[job.name for job in JOBS], help="which commands")
    parser.add_argument("--keep", type=Path, default=REPOSITORY / "build" / "fuzz" / "kills")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="begin no more kills after this")
    wanted = parser.parse_args()
    start = time.monotonic()
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in wanted.jobs}
    for module in LOADED:
        import_module(module)
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(Path(folder), wanted.jobs, wanted.seed, wanted.keep)
        with ProcessPoolExecutor(wanted.workers, FORK) as pool:
            for end in pool.map(partial(_one, bench, start + wanted.limit_s), range(wanted.count)):
                if end is not None:
                    outcomes[end[0]][end[1]] += 1
    total = sum(outcomes.values(), Counter[str]())
    bad = sum(total[name] for name in BAD)
    print(json.dumps({
        "kind": "kills", "seed": wanted.seed, "cases": total.total(), "outcomes": dict(total), "bad": bad,
        "jobs": {name: dict(counts) for name, counts in outcomes.items()},
        "seconds": round(time.monotonic() - start, 1), "keep": str(wanted.keep) if bad else None,
    }))  # fmt: skip
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
