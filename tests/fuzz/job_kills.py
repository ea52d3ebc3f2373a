"""A folder job that is killed again and again: its outputs are those of one that was not, and little is done again.

    python -m tests.fuzz.job_kills --clips 500 --broken 20 --kills 100 --seed 1

Clips, some of them broken, and a few films that are captioned in windows, are captioned once without a kill. Then the
same is killed at random moments, by the clock or right before one of its operations on files, and given again, until
so many kills have hit it and it has ended. Each time, what has an output's name must be whole. At the end, all outputs
must be those of the first run, with a row for each broken file. Clips and windows that the encoder began again are
counted: what was under way at a kill. What was answered and stored is never asked again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from dasheng_edge.runtime.atomic_output import unfinished
from dasheng_edge.runtime.audio.read import ReadAudio, describe_audio
from dasheng_edge.runtime.cli import app
from dasheng_edge.runtime.engine.clip_audio import ClipAudio
from dasheng_edge.runtime.jobs.job import LEDGER
from tests.fixtures.places import SMALLEST_BUNDLE

from .kills import FORK

RATE_HZ = 16_000
FILMS, FILM_S, WINDOW_S = 3, 9.0, 4.0
LOADED = ("llama_cpp", "onnxruntime", "dasheng_edge.runtime.captioner", "dasheng_edge.runtime.jobs.job")
NOT_COMPARED = {
    "timings",
    "tokens_per_s",
    "confidence",
}  # what differs between runs, and between batches in the last bits


def write_clips(folder: Path, clips: int, broken: int, seed: int) -> None:
    """Clips of 0.2 to 0.5 s and films, all of different content; `broken` of the clips are none."""
    chance = np.random.default_rng(seed)
    bad = set(chance.choice(clips, broken, replace=False).tolist())
    for number in range(clips + FILMS):
        is_film = number >= clips
        path = folder / ("films" if is_film else f"{number % 7}") / f"{number:04d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number in bad:
            path.write_bytes(b"RIFF" + chance.bytes(100))
            continue
        seconds = FILM_S if is_film else chance.uniform(0.2, 0.5)
        noise = chance.uniform(-0.3, 0.3, int(seconds * RATE_HZ))
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE_HZ)
            file.writeframes((noise * 32767).astype("<i2").tobytes())


def outputs(folder: Path) -> dict[str, Any]:
    """The files of a job, without what may differ; all must be whole."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            text = path.read_text("utf-8")
            rows: Any = text
            if path.suffix == ".json":
                rows = [{key: row[key] for key in row.keys() - NOT_COMPARED} for row in json.loads(text)]
            assert rows, f"{path} is empty"
            found[path.relative_to(folder).as_posix()] = rows
    return found


def _command(words: list[str], log: Path, out: Path, operation: int) -> None:
    """In a fork: the command, which notes what it asks, and ends before its nth operation on files of the outputs."""
    os.setsid()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    os.environ["DASHENG_EDGE_CACHE"] = "off"
    groups, done = ClipAudio.groups, 0

    def noted(self: ClipAudio) -> Any:
        start_s = self.source.start_s if isinstance(self.source, ReadAudio) else 0.0
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps([describe_audio(self.source), start_s]) + "\n")
        return groups(self)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal done
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if str(out) in str(args) and (writes or event.startswith("os.")):
            done += 1
            if done == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    ClipAudio.groups = noted  # type: ignore[method-assign]
    sys.argv = ["dasheng-edge", *words]
    sys.addaudithook(hook)
    app.main()


@dataclass(frozen=True)
class Job:
    """A command that captions clips, and where."""

    words: list[str]
    out: Path
    log: Path  # of what was asked

    def run(self, *, after_s: float | None = None, operation: int = 0) -> int | None:
        """Run it, or kill it; gives the exit code, or, negative, the signal that killed it."""
        words = [*self.words, "--out", str(self.out)]
        process = FORK.Process(target=_command, args=(words, self.log, self.out, operation))
        process.start()
        process.join(after_s)
        if process.exitcode is None:
            process.kill()
        process.join()
        return process.exitcode

    def asked_again(self) -> int:
        """Pieces that were begun more than once, each as often as it was too much."""
        asked = self.log.read_text("utf-8").splitlines()
        return len(asked) - len(set(asked))

    def faults(self, expected: dict[str, Any], broken: int) -> Iterator[str]:
        """What is wrong at the end."""
        lines = [json.loads(line) for line in (self.out / LEDGER).read_bytes().splitlines()]
        rows = [(line["key"], line["window"]) for line in lines if line["kind"] == "row"]
        failed = {line["row"]["audio"] for line in lines if line["kind"] == "error"}
        found = outputs(self.out)
        if found != expected:
            yield "the outputs are not those of the run that was not killed"
        if len(rows) != len(set(rows)):
            yield f"{len(rows) - len(set(rows))} rows were answered again"
        shown = sum(rows[0].get("error_type") == "AudioDecodeError" for name, rows in found.items() if "json" in name)
        if not shown == len(failed) == broken:
            yield f"{shown} error rows in files, {len(failed)} in the ledger; expected {broken}"
        yield from (f"{path.name} was left" for path in self.out.rglob(".*") if unfinished(path))


def kill(job: Job, expected: dict[str, Any], kills: int, whole_s: float, chance: random.Random) -> Iterator[str]:
    """Kill a job so often, then let it end; gives what is wrong."""
    killed = 0
    while killed < kills:
        if chance.random() < 0.5:
            code = job.run(after_s=chance.uniform(0.1, 0.3 + 2 * whole_s / kills))
        else:
            code = job.run(operation=chance.randint(1, 2 + 6 * len(expected) // kills))
        killed += code == -signal.SIGKILL
        if code not in (-signal.SIGKILL, 1):
            yield f"exit code {code}"
        if code == 1:  # it was done before so many kills: the rest finds nothing to do
            break
        if job.out.exists():
            wrong = [name for name, rows in outputs(job.out).items() if expected.get(name) != rows]
            yield from (f"after kill {killed}, {name} is another" for name in wrong)
    yield from () if (code := job.run()) == 1 else [f"exit code {code}"]  # some files are broken
    print(json.dumps({"killed": killed, "asked_again": job.asked_again()}), file=sys.stderr)


def main() -> int:
    """Kill, compare, and print one line of JSON."""
    parser = argparse.ArgumentParser(description="kills a folder job, and looks at what it leaves and does again")
    parser.add_argument("--bundle", type=Path, default=SMALLEST_BUNDLE)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--broken", type=int, default=20)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, help="pieces together; default: as many as pay")
    wanted = parser.parse_args()
    start = time.monotonic()
    for module in LOADED:
        import_module(module)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clips(folder / "clips", wanted.clips, wanted.broken, wanted.seed)
        words = [
            "caption", str(wanted.bundle), str(folder / "clips"), "--window", str(WINDOW_S), "--max-new-tokens", "4",
            "--threads", "1", "--format", "json,txt", *(["--batch", str(wanted.batch)] if wanted.batch else []),
        ]  # fmt: skip
        began = time.monotonic()
        whole = Job(words, folder / "whole", folder / "log-whole")
        whole.run()
        whole_s, expected = time.monotonic() - began, outputs(whole.out)
        job = Job(words, folder / "out", folder / "log")
        faults = [*kill(job, expected, wanted.kills, whole_s, random.Random(wanted.seed))]
        faults += job.faults(expected, wanted.broken)
        print(json.dumps({
            "kind": "job kills", "seed": wanted.seed, "clips": wanted.clips + FILMS, "batch": wanted.batch,
            "kills": wanted.kills, "faults": faults, "asked_again": job.asked_again(),
            "undisturbed_s": round(whole_s, 1), "seconds": round(time.monotonic() - start, 1),
        }))  # fmt: skip
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
