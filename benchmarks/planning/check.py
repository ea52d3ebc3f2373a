"""Predictions of `dasheng-edge plan` beside measurements, at lengths, threads and memories that nothing was fitted to.

    python -m benchmarks.planning.check BUNDLE... [--of memory|speed|both] [--under-limit] [--out FILE.json]
    python -m benchmarks.planning.check --show FILE.json

This machine must have been measured (`dasheng-edge plan --calibrate`), by graphs and decoders that are none of these.
Memory is the peak of a whole `caption`; with --under-limit it is run again in a control group (version 1, as root) that
has 5 % more than was predicted. Seconds are medians of captions in a process that is open. What --out has of other
bundles, or of memory where speed is measured, stays. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.places import REPOSITORY
from benchmarks.records import machine
from benchmarks.records.measured_run import run_measured
from benchmarks.records.section import NONE, table
from benchmarks.synthetic.noise import GREEDY, RATE_HZ, noise, write_wav
from dasheng_edge.runtime import Bundle, Captioner
from dasheng_edge.runtime.atomic_output import replace_text
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.machine.devices import usable_cores
from dasheng_edge.runtime.machine.user_folders import FOLDER_VARIABLE
from dasheng_edge.runtime.planning.board import Board, board_names, is_calibrated, load_board
from dasheng_edge.runtime.planning.memory import Use
from dasheng_edge.runtime.planning.shape import ModelShape
from dasheng_edge.runtime.planning.speed import Prediction, predict

TOKENS, RUNS = 40, 3  # the first run is not counted
MEMORY_WITHIN, SPEED_WITHIN, MARGIN = 0.05, 0.2, 1.05
CORES = usable_cores()
SETTINGS = ((5, 1, False), (20, CORES, False), (60, 1, False), (20, CORES, True))  # seconds, threads, low memory
_GROUP = Path("/sys/fs/cgroup/memory")
# What is compared: by how much it is divided to be read, and in what it is read.
STAGES = {"peak": (1e6, "MB"), "encoder": (1e-3, "ms"), "prefill": (1e-3, "ms"), "decode": (1e-3, "ms"),
          "caption": (1e-3, "ms")}  # fmt: skip
Row = dict[str, Any]
Setting = tuple[int, int, bool]


def timed(bundle: str, seconds: str, threads: str, memory: str) -> Row:
    """Median seconds of each stage, and how many tokens were said; what the child prints."""
    options = EngineOptions(weights="mapped", adaptive_threads=False, memory="low" if memory == "low" else "normal")
    with Captioner.open(bundle, options=options.changed(threads=int(threads)), check_sha256=False) as captioner:
        clip = (noise(float(seconds)), RATE_HZ)
        said = [captioner.caption(clip, max_new_tokens=TOKENS, sampling=GREEDY) for _ in range(RUNS)][1:]
    stages = {
        "encoder": [one.timings.front_end_ms + one.timings.encoder_ms + one.timings.projector_ms for one in said],
        "prefill": [one.timings.prefill_ms for one in said],
        "decode": [one.timings.decode_ms for one in said],
        "caption": [one.timings.total_ms for one in said],
    }
    kept = stages if memory == "normal" else {"caption": stages["caption"]}  # which stage opens what is no matter
    return {"tokens": len(said[0].tokens)} | {name: median(times) / 1000 for name, times in kept.items()}


def peak(bundle: Path, setting: Setting, limit_bytes: int | None = None) -> tuple[int, int]:
    """Exit status and peak bytes of `caption`, with an empty cache; under a limit, if one is given."""
    seconds, threads, low = setting
    with tempfile.TemporaryDirectory() as work:
        clip = write_wav(Path(work) / "clip.wav", noise(seconds))
        command = [
            sys.executable, "-m", "dasheng_edge", "caption", str(bundle.resolve()), str(clip), "--threads",
            str(threads), "--max-new-tokens", str(TOKENS), "--no-check-sha256", "--json",
            *(["--low-memory"] if low else []),
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


def row(folder: Path, setting: Setting, of: str, board: Board, *, under_limit: bool) -> Row:
    """One setting, predicted and measured."""
    seconds, threads, low = setting
    measured: Row = {}
    if of != "memory":
        words = [str(folder), str(seconds), str(threads), "low" if low else "normal"]
        command = [sys.executable, "-m", "benchmarks.planning.check", "--time", *words]
        measured = json.loads(run_measured(command, REPOSITORY).stdout.splitlines()[-1])
    use = Use(seconds, measured.pop("tokens", TOKENS), threads, low=low)
    foretold = predict(ModelShape.of(Bundle.open(folder, check_sha256=False)), board, use, threads)
    name = "/".join(folder.resolve().parts[-2:])
    got: Row = {"bundle": name, "seconds": seconds, "threads": threads, "low": low, "measured": measured}
    if of != "speed":
        status, measured["peak"] = peak(folder, setting)
        assert not status, status
        if under_limit:
            got["status_under_limit"] = peak(folder, setting, int(MARGIN * foretold.account.peak))[0]
    got["predicted"] = {name: value for name, value in _fields(foretold).items() if name in measured}
    got["errors"] = {name: value / measured[name] - 1 for name, value in got["predicted"].items() if measured[name]}
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
    options.add_argument("bundles", nargs="*", type=Path)
    options.add_argument("--of", choices=("memory", "speed", "both"), default="both")
    options.add_argument("--under-limit", action="store_true")
    options.add_argument("--out", type=Path)
    options.add_argument("--show", type=Path, help="print the table of a record")
    given = options.parse_args(words)
    if given.show:
        print(shown(json.loads(given.show.read_text("utf-8"))["rows"]))
        return 0
    rows = json.loads(given.out.read_text("utf-8"))["rows"] if given.out and given.out.is_file() else []
    board = load_board("here" if given.of != "memory" or is_calibrated() else board_names()[0])
    for folder in given.bundles:
        for setting in SETTINGS:
            joined(rows, row(folder, setting, given.of, board, under_limit=given.under_limit))
            print(" | ".join(_cells(rows[-1])), file=sys.stderr, flush=True)
    record: dict[str, Any] = {**summary(rows), "machine": machine.card(), "rows": rows}
    if given.out:
        replace_text(given.out, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))
    return int(record["memory"] > MEMORY_WITHIN or record["speed"] > SPEED_WITHIN or record["killed"] > 0)


def joined(rows: list[Row], one: Row) -> None:
    """Put a row at the end, with what an earlier one of the same setting has more."""
    for earlier in rows:
        if all(earlier[key] == one[key] for key in ("bundle", "seconds", "threads", "low")):
            rows.remove(earlier)
            parts = {name: {**earlier[name], **one[name]} for name in ("measured", "predicted", "errors")}
            one = {**earlier, **one, **parts}
            break
    rows.append(one)


def summary(rows: Sequence[Row]) -> Row:
    """The largest errors, and how many runs ended under their limit."""
    worst = {
        name: max((abs(one["errors"][name]) for one in rows if name in one["errors"]), default=0.0)
        for name in ("peak", "caption")
    }
    killed = sum(one.get("status_under_limit", 0) != 0 for one in rows)
    return {"memory": worst["peak"], "speed": worst["caption"], "killed": killed}


def shown(rows: Sequence[Row]) -> str:
    """A table in Markdown."""
    heads = ("bundle", "clip, s", "threads", "memory", *(f"{name}, {unit}" for name, (_, unit) in STAGES.items()))
    return table((*heads, f"with {MARGIN - 1:.0%} more"), [_cells(one) for one in rows])


def _cells(one: Row) -> list[str]:
    cells = [
        f"{one['predicted'][name] / scale:,.0f} / {one['measured'][name] / scale:,.0f} ({one['errors'][name]:+.0%})"
        if name in one["errors"]
        else NONE
        for name, (scale, _) in STAGES.items()
    ]
    limit = {None: NONE, 0: "runs"}.get(one.get("status_under_limit"), "ends")
    return [one["bundle"], str(one["seconds"]), str(one["threads"]), "low" if one["low"] else "normal", *cells, limit]


if __name__ == "__main__":
    sys.exit(main())
