"""A folder job: whether a recording of hours takes more memory than one of minutes, and how fast it is captioned.

    python -m benchmarks.speed.jobs BUNDLE FOLDER

Recordings are made of the clips in a folder, one after the other, again and again; each is captioned in windows into
a folder, by the command, in a process of its own, measured from outside. The last line is JSON.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.places import REPOSITORY
from benchmarks.records.benchmark import Benchmark, Target, parser, run
from benchmarks.records.measured_run import run_measured
from benchmarks.records.plots import Bar, Panel, bars
from benchmarks.records.record import BenchmarkError, Record
from benchmarks.records.section import Section, megabytes, table
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.clips.clips import find_clips

RATE_HZ = 16_000
LENGTHS_S = (300, 18_000)  # five minutes, and what a wrist records in a night
WINDOW_S, HOP_S = 30, 15


def measure(bundle: Bundle, folder: Path, lengths_s: Sequence[int], threads: int, tokens: int) -> dict[str, Any]:
    """Seconds, peak bytes and windows of a job for each length."""
    taken: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as work:
        for length in lengths_s:
            recording = _write(Path(work) / f"{length}.wav", _sound(folder), length)
            command = [
                sys.executable, "-m", "dasheng_edge", "caption", str(bundle.folder.resolve()), str(recording),
                "--window", str(WINDOW_S), "--hop", str(HOP_S), "--threads", str(threads), "--quiet",
                "--max-new-tokens", str(tokens), "--out", str(Path(work) / f"out-{length}"), "--format", "jsonl,txt",
            ]  # fmt: skip
            timed = run_measured(command, REPOSITORY)
            if timed.returncode:
                raise BenchmarkError(f"the job ended with status {timed.returncode}: {timed.stderr.strip()[-300:]}")
            rows = (Path(work) / f"out-{length}" / f"{length}.jsonl").read_bytes().splitlines()
            taken[str(length)] = {
                "windows": len(rows), "seconds": timed.seconds, "peak_rss_bytes": timed.peak_rss_bytes,
            }  # fmt: skip
            recording.unlink()
    return {"window_s": WINDOW_S, "hop_s": HOP_S, "jobs": taken}


def _sound(folder: Path) -> Iterator[np.ndarray[Any, np.dtype[np.int16]]]:
    """Clips one after the other, without end, int16 [samples] each."""
    clips = [clip.read(RATE_HZ) for clip in find_clips(folder).clips]
    yield from itertools.cycle([(np.clip(clip, -1, 1) * 32767).astype(np.int16) for clip in clips])


def _write(path: Path, sound: Iterator[np.ndarray[Any, np.dtype[np.int16]]], seconds: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        left = seconds * RATE_HZ
        while left:
            part = next(sound)[:left]
            file.writeframes(part.tobytes())
            left -= len(part)
    return path


def ends(record: Record) -> tuple[dict[str, float], dict[str, float]]:
    """The shortest recording and the longest."""
    jobs = sorted(record["jobs"].items(), key=lambda job: int(job[0]))
    return jobs[0][1], jobs[-1][1]


def growth(record: Record) -> float:
    """The peak of the longest recording, in times of that of the shortest."""
    short, long = ends(record)
    return long["peak_rss_bytes"] / short["peak_rss_bytes"]


def real_time(record: Record) -> float:
    """Seconds of work a second of the longest recording, the start of the process included."""
    longest = max(map(int, record["jobs"]))
    return float(record["jobs"][str(longest)]["seconds"]) / longest


def headline(record: Record) -> dict[str, float]:
    """Growth of memory, and the real-time factor."""
    return {"peak_rss_times": growth(record), "real_time_factor": real_time(record)}


def section(record: Record) -> Section:
    """A line for each length."""
    rows = [
        [
            f"{int(length) / 60:g}", f"{job['windows']:.0f}", f"{job['seconds']:.1f}",
            f"{job['seconds'] / int(length):.4f}", megabytes(job["peak_rss_bytes"]),
        ]
        for length, job in record["jobs"].items()
    ]  # fmt: skip
    about = (
        f"One recording into a folder, in windows of {record['window_s']} s every {record['hop_s']} s, by the command: "
        f"start and ledger included. The longest takes {growth(record):.3f} times the memory of the shortest."
    )
    lines = table(("recording, min", "windows", "s", "real-time factor", "peak, MB"), rows)
    title = f"A recording of hours, {record['model']}"
    peaks = [
        Bar(f"{int(length) / 60:g} min", [job["peak_rss_bytes"] / 1e6], job["peak_rss_bytes"] / 1e6, ours=True)
        for length, job in record["jobs"].items()
    ]
    return Section(title, f"{about}\n\n{lines}", bars([Panel(peaks, "peak resident MB")], title))


TARGETS = (
    Target("peak resident memory, 5 h of audio", "5 min of audio", 1.1, "times", "micro", growth, at_most=True),
    Target("time of 5 h of audio in overlapping windows", "its length", 1.0, "times", "micro", real_time, at_most=True),
)
BENCHMARK = Benchmark("jobs", headline, section, targets=TARGETS, rank=4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if it cannot be measured."""
    options = parser(__doc__, "bundle", "folder")
    options.add_argument("--lengths", type=int, nargs=2, default=LENGTHS_S, metavar="SECONDS", help="of recordings")
    options.add_argument("--tokens", type=int, default=64, help="longest caption")
    given = options.parse_args(arguments)
    return run(
        BENCHMARK, given, lambda bundle: measure(bundle, given.folder, given.lengths, given.threads, given.tokens)
    )


if __name__ == "__main__":
    sys.exit(main())
