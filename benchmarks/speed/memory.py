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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records.measured_run import run_measured
from benchmarks.records.record import REPOSITORY, BenchmarkError, parser, run
from benchmarks.records.turns import field, take_turns, times
from benchmarks.synthetic.noise import noise, write_wav
from dasheng_edge.runtime import Bundle
from dasheng_edge.runtime.text.prefix_cache import FOLDER_VARIABLE

CLIP_S, TOKENS = 10, 40
LENGTHS_S = (60, 600)
CAPTION = "caption"
Turn = dict[str, float]


def measure(bundle: Bundle, given_tokens: int, lengths_s: Sequence[int], threads: int, rounds: int) -> dict[str, Any]:
    """Bytes and seconds of each process."""
    os.environ[FOLDER_VARIABLE] = "off"  # of the processes, too: each computes its prompt
    folder = str(bundle.folder.resolve())
    with tempfile.TemporaryDirectory() as work:
        clip = write_wav(Path(work) / "clip.wav", noise(CLIP_S))
        turns = {CAPTION: _process(CAPTION, folder, str(clip), str(threads), str(given_tokens))}
        turns |= {str(length): _process("encode", folder, str(length), str(threads)) for length in lengths_s}
        taken = take_turns(turns, rounds, warm_up=0)
    return {
        "bundle_bytes": bundle.manifest.total_bytes,
        CAPTION: {"clip_s": CLIP_S, **{name: field(taken[CAPTION], name) for name in taken[CAPTION][0]}},
        "encode": {
            str(length): {name: field(taken[str(length)], name) for name in taken[str(length)][0]}
            for length in lengths_s
        },
    }


def _process(*arguments: str) -> Callable[[], Turn]:
    command = [sys.executable, "-m", "benchmarks.peers.memory_worker", *arguments]

    def run() -> Turn:
        found = run_measured(command, REPOSITORY)
        if found.returncode:
            raise BenchmarkError(f"{arguments[0]} ended with status {found.returncode}: {found.stderr.strip()[-300:]}")
        said: Turn = json.loads(found.stdout.strip().splitlines()[-1])
        anonymous = {} if found.peak_anonymous_bytes is None else {"peak_anonymous_bytes": found.peak_anonymous_bytes}
        return {**said, "seconds": found.seconds, "peak_rss_bytes": found.peak_rss_bytes, **anonymous}

    return run


def headline(record: Mapping[str, Any]) -> dict[str, float]:
    """What matters most of a record."""
    peak = record[CAPTION]["peak_rss_bytes"]["p50"]
    short, *_, long = record["encode"].values()
    return {
        "caption_peak_rss_mb": peak / 1e6,
        "over_bundle_mb": (peak - record["bundle_bytes"]) / 1e6,
        "long_times_encoder_s": times(long["encoder_s"], short["encoder_s"]),
        "long_over_short_mb": (long["peak_rss_bytes"]["p50"] - short["peak_rss_bytes"]["p50"]) / 1e6,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if it cannot be measured."""
    options = parser(__doc__, "bundle")
    options.add_argument("--tokens", type=int, default=TOKENS, help="longest caption")
    options.add_argument(
        "--lengths", type=int, nargs=2, default=LENGTHS_S, metavar="SECONDS", help="of audio to encode"
    )
    given = options.parse_args(arguments)

    def measured(bundle: Bundle) -> dict[str, Any]:
        bundle.text_facts()  # refuses a bundle without a decoder
        return measure(bundle, given.tokens, given.lengths, given.threads, given.rounds)

    return run("memory", given, measured, headline)


if __name__ == "__main__":
    sys.exit(main())
