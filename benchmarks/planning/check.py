"""Predictions of `dasheng-edge plan` beside measurements, for bundles at three lengths, with one thread and more.

    python -m benchmarks.planning.check BUNDLE... [--under-limit]

This machine must have been measured (`dasheng-edge plan --calibrate`), by graphs and decoders that are none of these.
Memory is the peak of a whole `caption`; with --under-limit it is run again in a control group (version 1, as root) that
has 5 % more than was predicted. Seconds are medians of captions in a process that is open. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.places import REPOSITORY
from benchmarks.records.measured_run import run_measured
from benchmarks.synthetic.noise import GREEDY, RATE_HZ, noise, write_wav
from dasheng_edge.runtime import Bundle, Captioner
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.machine.devices import usable_cores
from dasheng_edge.runtime.machine.user_folders import FOLDER_VARIABLE
from dasheng_edge.runtime.planning.board import load_board
from dasheng_edge.runtime.planning.memory import Use
from dasheng_edge.runtime.planning.shape import ModelShape
from dasheng_edge.runtime.planning.speed import Prediction, predict

TOKENS, RUNS = 40, 3  # the first run is not counted
MEMORY_WITHIN, SPEED_WITHIN, MARGIN = 0.05, 0.2, 1.05
SETTINGS = ((2, 1), (10, usable_cores()), (30, 1))  # seconds and threads
_GROUP = Path("/sys/fs/cgroup/memory")
_MB = 1e6
Row = dict[str, Any]


def timed(bundle: str, seconds: str, threads: str) -> Row:
    """Median seconds of each stage, and how many tokens were said; what the child prints."""
    options = EngineOptions(weights="mapped", adaptive_threads=False).changed(threads=int(threads))
    start = time.perf_counter()
    with Captioner.open(bundle, options=options, check_sha256=False) as captioner:
        opened = time.perf_counter() - start
        clip = (noise(float(seconds)), RATE_HZ)
        said = [captioner.caption(clip, max_new_tokens=TOKENS, sampling=GREEDY) for _ in range(RUNS)][1:]
    stages = {
        "encoder": [one.timings.front_end_ms + one.timings.encoder_ms + one.timings.projector_ms for one in said],
        "prefill": [one.timings.prefill_ms for one in said],
        "decode": [one.timings.decode_ms for one in said],
        "caption": [one.timings.total_ms for one in said],
    }
    return {"open": opened, "tokens": len(said[0].tokens)} | {
        name: median(times) / 1000 for name, times in stages.items()
    }


def peak(bundle: Path, seconds: float, threads: int, limit_bytes: int | None = None) -> tuple[int, int]:
    """Exit status and peak bytes of `caption`, with an empty cache; under a limit, if one is given."""
    with tempfile.TemporaryDirectory() as work:
        clip = write_wav(Path(work) / "clip.wav", noise(seconds))
        command = [
            sys.executable, "-m", "dasheng_edge", "caption", str(bundle.resolve()), str(clip), "--threads",
            str(threads), "--max-new-tokens", str(TOKENS), "--no-check-sha256", "--json",
        ]  # fmt: skip
        group = _GROUP / f"plan-{os.getpid()}"
        if limit_bytes is not None:
            group.mkdir()
            (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
            command = ["sh", "-c", f"echo $$ > {group}/cgroup.procs; exec {shlex.join(command)}"]
        kept, os.environ[FOLDER_VARIABLE] = os.environ.get(FOLDER_VARIABLE), work
        try:
            run = run_measured(command, REPOSITORY)
        finally:
            if limit_bytes is not None:
                group.rmdir()
            os.environ.pop(FOLDER_VARIABLE)
            if kept is not None:
                os.environ[FOLDER_VARIABLE] = kept
    return run.returncode, run.peak_rss_bytes


def row(folder: Path, seconds: int, threads: int, *, under_limit: bool) -> Row:
    """One setting, predicted and measured."""
    command = [sys.executable, "-m", "benchmarks.planning.check", "--time", str(folder), str(seconds), str(threads)]
    measured = json.loads(run_measured(command, REPOSITORY).stdout.splitlines()[-1])
    shape = ModelShape.of(Bundle.open(folder, check_sha256=False))
    foretold = predict(shape, load_board("here"), Use(seconds, measured["tokens"], threads), threads)
    status, measured["peak"] = peak(folder, seconds, threads)
    assert not status, status
    got: Row = {"bundle": str(folder), "seconds": seconds, "threads": threads, "measured": measured}
    got["predicted"] = _fields(foretold)
    got["errors"] = {name: got["predicted"][name] / measured[name] - 1 for name in got["predicted"] if measured[name]}
    if under_limit:
        got["status_under_limit"] = peak(folder, seconds, threads, int(MARGIN * foretold.account.peak))[0]
    return got


def _fields(one: Prediction) -> dict[str, float]:
    times = one.times
    return {
        "peak": one.account.peak, "encoder": times.front_end_s + times.encoder_s, "prefill": times.prefill_s,
        "decode": times.decode_s, "caption": times.caption_s,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if a prediction of memory or of a caption's seconds is farther off than it may be."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--time"]:
        print(json.dumps(timed(*words[1:])))
        return 0
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    options.add_argument("bundles", nargs="+", type=Path)
    options.add_argument("--under-limit", action="store_true")
    given = options.parse_args(words)
    rows = []
    print(
        f"{'bundle':28} {'clip':>5} {'threads':>7}   predicted/measured: peak MB, ms of encoder, prefill, decode, all"
    )
    for folder in given.bundles:
        for seconds, threads in SETTINGS:
            one = row(folder, seconds, threads, under_limit=given.under_limit)
            rows.append(one)
            cells = [
                f"{one['predicted'][name] * scale:.0f}/{one['measured'][name] * scale:.0f} {error:+.0%}"
                for name, error in one["errors"].items()
                for scale in [1 / _MB if name == "peak" else 1000]
            ]
            limit = f"  under limit: {one['status_under_limit']}" if given.under_limit else ""
            print(f"{str(folder)[-28:]:28} {seconds:>3} s {threads:>7}   {'  '.join(cells)}{limit}", flush=True)
    memory = max(abs(one["errors"]["peak"]) for one in rows)
    speed = max(abs(one["errors"]["caption"]) for one in rows)
    killed = sum(one.get("status_under_limit", 0) != 0 for one in rows)
    print(json.dumps({"memory": memory, "speed": speed, "killed": killed, "rows": rows}))
    return int(memory > MEMORY_WITHIN or speed > SPEED_WITHIN or killed > 0)


if __name__ == "__main__":
    sys.exit(main())
