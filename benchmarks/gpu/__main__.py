"""What a card makes of bundles of true shape, in one command and under eight minutes; a record, and a page of it.

    python -m benchmarks.gpu --device cuda

Each stage is a process with a time limit, and stores each figure as it comes: one that fails costs nothing but its own
figures. `--device cpu --shape tiny` rehearses all of it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.findings import how_ended
from benchmarks.gpu.page import headline, page
from benchmarks.places import MICRO, REPOSITORY, RESULTS
from benchmarks.records.benchmark import parser
from benchmarks.records.record import make_record, publish
from dasheng_edge.runtime.atomic_output import replace_text

BUILD = REPOSITORY / "build"
FAST = Path("/dev/shm")  # noqa: S108  # a file system in memory
LIMITS_S = {
    "skeleton": 600, "assemble": 90, "correctness": 150, "floors": 60, "F16": 130, "Q4_K_M": 130, "torch": 120
}  # fmt: skip
BESIDE = ("assemble", "correctness")  # that may run together: neither is timed


def commands(given: argparse.Namespace) -> dict[str, list[str]]:
    """The stages that are asked for, in their order."""
    work, bundles = given.work, given.work / "bundles"
    skeleton = given.skeleton or BUILD / "gpu" / given.shape

    def module(name: str, *arguments: object) -> list[str]:
        return [sys.executable, "-m", f"benchmarks.gpu.{name}", *map(str, arguments)]

    def found(stage: str) -> Path:
        return Path(work / f"{stage}.json")

    asked = ["--device", given.device]
    lengths = ["--lengths", given.lengths] if given.lengths else []
    sizes = [*asked, *lengths, "--tokens", given.tokens]
    ours = [*sizes, "--batches", given.batches, *(["--kernels"] if given.kernels else [])]
    every: dict[str, list[str]] = {
        "skeleton": module("skeleton", given.shape, skeleton),
        "assemble": module("assemble", skeleton, bundles),
        "correctness": module("correctness", given.micro, given.clips, work / "micro", found("correctness"), *asked),
        "floors": module("peer", skeleton, found("floors"), *asked, "--floors"),
        "F16": module("measure", bundles / "F16", found("F16"), *ours),
        "Q4_K_M": module("measure", bundles / "Q4_K_M", found("Q4_K_M"), *ours),
        "torch": module("peer", skeleton, found("torch"), *sizes, "--batches", given.torch_batches),
    }
    wanted = given.stages.split(",") if given.stages else list(every)
    if "assemble" in wanted and not skeleton.exists():
        wanted.append("skeleton")
    elif "skeleton" in wanted:
        wanted.remove("skeleton")
    return {stage: line for stage, line in every.items() if stage in wanted}


def run_stages(lines: Mapping[str, Sequence[str]], work: Path, left_s: float, partial: Path) -> dict[str, Any]:
    """What each stage found, with how it ended and how long it took; what there is stands in `partial` meanwhile."""
    began, found = time.monotonic(), dict[str, Any]()
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}

    def finish() -> None:
        for stage, (process, start) in running.items():
            rest = min(LIMITS_S[stage] - (time.monotonic() - start), left_s - (time.monotonic() - began))
            try:
                ended: object = how_ended(process.wait(max(rest, 0)))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                ended = f"ended after {time.monotonic() - start:.0f} s"
            path = work / f"{stage}.json"
            facts = json.loads(path.read_text()) if path.is_file() else {}
            found[stage] = {**facts, "status": ended, "took_s": round(time.monotonic() - start, 1)}
        running.clear()
        replace_text(partial, json.dumps({"stages": found}, indent=1) + "\n")

    for stage, line in lines.items():
        if running and stage not in BESIDE:
            finish()
        print(f"{stage}: {' '.join(line[1:])}", file=sys.stderr, flush=True)
        running[stage] = (subprocess.Popen(line, cwd=REPOSITORY, stdout=sys.stderr), time.monotonic())
        if stage not in BESIDE:
            finish()
    finish()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if no stage ended well."""
    options = parser(__doc__)
    options.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    options.add_argument("--shape", default="7b", choices=("7b", "tiny"))
    options.add_argument("--skeleton", type=Path, help="default: build/gpu/SHAPE, made where it is missing")
    options.add_argument("--micro", type=Path, default=BUILD / "micro", help="a bundle of MiDashengLM-micro")
    options.add_argument("--clips", type=Path, default=MICRO / "clips", help="what it captions: .flac or 16-bit .wav")
    options.add_argument("--work", type=Path, help="room for 21 GB, in memory if possible; emptied before")
    options.add_argument("--stages", help=f"some of {','.join(LIMITS_S)}; default: all")
    options.add_argument("--lengths", help="of first tokens, seconds; default: 2,10,20,30")
    options.add_argument("--batches", default="1,8,32,64,128")
    options.add_argument("--torch-batches", default="1,8,32,64")
    options.add_argument("--tokens", type=int, default=100)
    options.add_argument("--kernels", action="store_true", help="name the kernels that run, too")
    options.add_argument("--limit", type=float, default=470, help="seconds after which stages are ended")
    given = options.parse_args(arguments)
    given.work = given.work or (FAST if FAST.is_dir() else BUILD) / f"dasheng-edge-gpu-{given.shape}"
    shutil.rmtree(given.work, ignore_errors=True)
    given.work.mkdir(parents=True)
    out = given.out or RESULTS / "gpu" / f"{given.model or given.shape}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        stages = run_stages(commands(given), given.work, given.limit, out)
    finally:
        shutil.rmtree(given.work, ignore_errors=True)
    record = make_record("gpu", given.shape, given, {"device": given.device, "stages": stages})
    replace_text(out.with_suffix(".md"), page(record))
    publish(record, out, headline(record))
    return 0 if any(stage["status"] == 0 for stage in stages.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
