"""How much memory captioning takes, and whether long audio takes more of it, or more than its share of time.

    python -m benchmarks.speed.memory BUNDLE

Each is measured in a process of its own, from outside: the peak of its resident memory, mapped pages of files included.
The last line is JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.places import REPOSITORY
from benchmarks.records.benchmark import SMALL, Benchmark, Target, parser, run
from benchmarks.records.measured_run import run_measured
from benchmarks.records.plots import Bar, Panel, bars, bars_of
from benchmarks.records.record import BenchmarkError, Record
from benchmarks.records.section import NONE, Section, megabytes, table
from benchmarks.records.turns import field, take_turns, times
from benchmarks.synthetic.noise import noise, write_wav
from dasheng_edge.runtime import Bundle
from dasheng_edge.runtime.machine.user_folders import FOLDER_VARIABLE

CLIP_S, TOKENS = 10, 40
LENGTHS_S = (60, 600)
CAPTION, LOW = "caption", "caption_low_memory"
FACTOR = 1.1  # of the bundle's bytes, beside which the peak is judged
Turn = dict[str, float]


def measure(bundle: Bundle, given_tokens: int, lengths_s: Sequence[int], threads: int, rounds: int) -> dict[str, Any]:
    """Bytes and seconds of each process."""
    os.environ[FOLDER_VARIABLE] = "off"  # of the processes, too: each computes its prompt
    folder = str(bundle.folder.resolve())
    with tempfile.TemporaryDirectory() as work:
        clip = write_wav(Path(work) / "clip.wav", noise(CLIP_S))
        given = (folder, str(clip), str(threads), str(given_tokens))
        turns = {CAPTION: _process(CAPTION, *given), LOW: _process(CAPTION, *given, "low")}
        turns |= {str(length): _process("encode", folder, str(length), str(threads)) for length in lengths_s}
        taken = take_turns(turns, rounds, warm_up=0)
    return {
        "bundle_bytes": bundle.manifest.total_bytes,
        **{
            name: {"clip_s": CLIP_S, **{key: field(taken[name], key) for key in taken[name][0]}}
            for name in (CAPTION, LOW)
        },
        "encode": {
            str(length): {name: field(taken[str(length)], name) for name in taken[str(length)][0]}
            for length in lengths_s
        },
    }


def _process(*arguments: str) -> Callable[[], Turn]:
    command = [sys.executable, "-m", "benchmarks.peers.bundle_process", *arguments]

    def run() -> Turn:
        timed = run_measured(command, REPOSITORY)
        if timed.returncode:
            raise BenchmarkError(f"{arguments[0]} ended with status {timed.returncode}: {timed.stderr.strip()[-300:]}")
        out = timed.stdout.strip().splitlines()[-1]
        said: Turn = {"tokens": len(out.split())} if arguments[0] == CAPTION else json.loads(out)
        anonymous = {} if timed.peak_anonymous_bytes is None else {"peak_anonymous_bytes": timed.peak_anonymous_bytes}
        return {**said, "seconds": timed.seconds, "peak_rss_bytes": timed.peak_rss_bytes, **anonymous}

    return run


def headline(record: Record) -> dict[str, float]:
    """The main numbers of a record."""
    peak = record[CAPTION]["peak_rss_bytes"]["p50"]
    short, *_, long = record["encode"].values()
    low = {} if LOW not in record else {"low_memory_peak_rss_mb": record[LOW]["peak_rss_bytes"]["p50"] / 1e6}
    return {
        "caption_peak_rss_mb": peak / 1e6,
        **low,
        "over_bundle_mb": (peak - record["bundle_bytes"]) / 1e6,
        "long_times_encoder_s": times(long["encoder_s"], short["encoder_s"]),
        "long_over_short_mb": (long["peak_rss_bytes"]["p50"] - short["peak_rss_bytes"]["p50"]) / 1e6,
    }


def section(record: Record) -> Section:
    """Peaks of processes."""
    caption = record[CAPTION]
    named = {f"caption of {caption['clip_s']:g} s": caption}
    if LOW in record:  # not in those of earlier versions
        named[f"caption of {caption['clip_s']:g} s, low memory"] = record[LOW]
    named |= {f"encoder, {float(length):g} s of audio": timed for length, timed in record["encode"].items()}
    rows = [
        [
            name, megabytes(timed["peak_rss_bytes"]["p50"]),
            megabytes(timed.get("peak_anonymous_bytes", {}).get("p50")), f"{timed['seconds']['p50']:.2f}",
            f"{timed['encoder_s']['p50']:.3f}" if "encoder_s" in timed else NONE,
        ]
        for name, timed in named.items()
    ]  # fmt: skip
    text = "\n\n".join([
        f"The bundle has {megabytes(record['bundle_bytes'])} MB. Peaks count the pages of mapped files.",
        table(("process", "peak, MB", "of it anonymous, MB", "process, s", "encoder and projector, s"), rows),
    ])  # fmt: skip
    peaks = {name: timed["peak_rss_bytes"] for name, timed in named.items()}
    plotted = [Bar("files of the bundle", [record["bundle_bytes"] / 1e6], record["bundle_bytes"] / 1e6, ours=False),
               *bars_of(peaks, 1e-6, tuple(peaks))]  # fmt: skip
    title = f"Memory, {record['model']}"
    return Section(title, text, bars([Panel(plotted, "peak resident MB")], title))


def summary(record: Record) -> dict[str, str]:
    """Disk, and what long audio adds."""
    return {
        "the bundle on disk": f"{megabytes(record['bundle_bytes'])} MB",
        "more memory for 10 minutes of audio than for one": f"{headline(record)['long_over_short_mb']:.0f} MB",
    }


def _over_bundle_mb(record: Record) -> float:
    return float(record[CAPTION]["peak_rss_bytes"]["p50"] - FACTOR * record["bundle_bytes"]) / 1e6


TARGETS = (
    Target(
        f"peak resident memory of captioning, beyond {FACTOR:g} times the bundle", "the bundle's bytes", 250.0, "MB",
        SMALL, _over_bundle_mb, at_most=True,
    ),
    Target(
        "encoder time, 10 min of audio", "1 min of audio", 10.5, "times", SMALL,
        lambda record: headline(record)["long_times_encoder_s"], at_most=True,
    ),
    Target(
        "peak resident memory, 10 min of audio, beyond that of 1 min", "1 min of audio", 50.0, "MB", SMALL,
        lambda record: headline(record)["long_over_short_mb"], at_most=True,
    ),
)  # fmt: skip
BENCHMARK = Benchmark("memory", headline, section, summary, TARGETS, rank=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if it cannot be measured."""
    options = parser(__doc__, "bundle")
    options.add_argument("--tokens", type=int, default=TOKENS, help="longest caption")
    options.add_argument(
        "--lengths", type=int, nargs=2, default=LENGTHS_S, metavar="SECONDS", help="of audio to encode"
    )
    given = options.parse_args(arguments)

    def measured(bundle: Bundle) -> dict[str, Any]:
        _ = bundle.decoder_facts  # refuses a bundle without a decoder
        return measure(bundle, given.tokens, given.lengths, given.threads, given.rounds)

    return run(BENCHMARK, given, measured)


if __name__ == "__main__":
    sys.exit(main())
