"""First tokens, whole captions and batches of one bundle on a device, through what `Captioner` offers to all.

python -m benchmarks.gpu.measure BUNDLE FINDINGS --device cuda
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.findings import Findings, median
from benchmarks.synthetic.noise import GREEDY, RATE_HZ, noise
from dasheng_edge.runtime import Caption, Captioner

LENGTHS_S, BATCH_CLIP_S = (2, 10, 20, 30), 30
NEW_S = 0.37  # less than a length is one that was not heard before, in as many chunks
FIRST_BATCH, FIRST_TOKENS = 8, 10  # clips that are given together before any others, and tokens of each
ROUNDS, BATCH_ROUNDS = 7, 2
SAMPLE_S = 0.02
TOP = 25  # kernels that are named


class Meter:
    """Share of time that kernels ran and memory that is used, as the driver tells (NVML); nothing where it does not."""

    def __init__(self, device: str) -> None:
        self._nvml: Any = None
        if device == "cuda":
            with contextlib.suppress(Exception):  # no binding, no driver
                self._nvml = import_module("pynvml")
                self._nvml.nvmlInit()
                self._card = self._nvml.nvmlDeviceGetHandleByIndex(0)

    def mib(self) -> int | None:
        """Memory of the card that is used, by anyone."""
        return None if self._nvml is None else int(self._nvml.nvmlDeviceGetMemoryInfo(self._card).used >> 20)

    @contextlib.contextmanager
    def watch(self, into: dict[str, Any]) -> Generator[None]:
        """Put the mean share and the largest memory in the meantime into `into`."""
        if self._nvml is None:
            yield
            return
        done, shares, sizes = threading.Event(), list[float](), list[int]()

        def sample() -> None:
            while not done.wait(SAMPLE_S):
                shares.append(self._nvml.nvmlDeviceGetUtilizationRates(self._card).gpu / 100)
                sizes.append(self.mib() or 0)

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            into |= {"busy_share": float(np.mean(shares)) if shares else None, "mib": max(sizes, default=None)}


def stages(caption: Caption) -> dict[str, float]:
    """Milliseconds by stage."""
    return {name: round(value, 3) for name, value in asdict(caption.timings).items() if name.endswith("_ms")}


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each field."""
    return {name: median([row[name] for row in rows]) for name in rows[0]}


class Measurement:
    """One open captioner."""

    def __init__(self, captioner: Captioner, meter: Meter, tokens: int) -> None:
        self.captioner, self.meter, self.tokens = captioner, meter, tokens

    def say(self, seconds: float, tokens: int, seed: int = 0) -> Caption:
        """The caption of noise."""
        clip = (noise(seconds, seed), RATE_HZ)
        return self.captioner.caption(clip, max_new_tokens=tokens, sampling=GREEDY)

    def first_token(self, seconds: float) -> dict[str, Any]:
        """Stages of a first token: of a length that is new, then at the length, medians; the prompt is warm."""
        new = stages(self.say(seconds - NEW_S, 1))
        warm = [stages(self.say(seconds, 1, seed)) for seed in range(ROUNDS + 1)][1:]
        return {"new_length": new, "warm": medians(warm), "values_ms": [row["first_token_ms"] for row in warm]}

    def caption(self) -> dict[str, Any]:
        """A clip of 30 s with all tokens."""
        said = [self.say(BATCH_CLIP_S, self.tokens, seed) for seed in range(3)][1:]
        rows = medians([stages(one) for one in said])
        decoded = said[0].timings.decode_tokens
        return {**rows, "tokens": len(said[0].tokens), "ms_per_token": rows["decode_ms"] / decoded if decoded else None}

    def first_batch(self) -> dict[str, float]:
        """Seconds that a batch takes when one clip alone was captioned before, and the same again."""
        clips, seconds = [(noise(LENGTHS_S[1], seed), RATE_HZ) for seed in range(FIRST_BATCH)], list[float]()
        for _ in range(3):
            start = time.perf_counter()
            self.captioner.caption_batch(clips, max_new_tokens=FIRST_TOKENS, sampling=GREEDY, batch=FIRST_BATCH)
            seconds.append(time.perf_counter() - start)
        return {"first_s": seconds[0], "again_s": seconds[-1]}

    def batch(self, size: int) -> dict[str, Any]:
        """Clips a second of so many clips of 30 s given together."""
        clips = [(noise(BATCH_CLIP_S, seed), RATE_HZ) for seed in range(size)]
        found: dict[str, Any] = {}

        def run(tokens: int) -> list[Caption]:
            return self.captioner.caption_batch(clips, max_new_tokens=tokens, sampling=GREEDY, batch=size)

        said, seconds = run(2), []
        with self.meter.watch(found):
            for _ in range(BATCH_ROUNDS):
                start = time.perf_counter()
                said = run(self.tokens)
                seconds.append(time.perf_counter() - start)
        counts = [len(one.tokens) for one in said]
        sums = {name: round(sum(stages(one)[name] for one in said), 1) for name in stages(said[0])}
        return {
            "clips_per_s": size / min(seconds), "seconds": seconds, "tokens": [min(counts), max(counts)],
            "sums_ms": sums, **found,
        }  # fmt: skip


def kernels(run: Callable[[], object]) -> dict[str, Any]:
    """What runs on the card meanwhile, by torch's profiler, which sees the kernels of every library in the process."""
    profiler = import_module("torch.profiler")
    run()
    with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as profile:
        start = time.perf_counter()
        run()
        wall_ms = 1000 * (time.perf_counter() - start)
    rows = sorted(profile.key_averages(), key=lambda row: -row.self_device_time_total)
    busy_ms = sum(row.self_device_time_total for row in rows) / 1000
    top = [[row.key[:110], row.count, round(row.self_device_time_total / 1000, 3)] for row in rows[:TOP]]
    return {
        "wall_ms": wall_ms, "busy_ms": busy_ms, "busy_share": busy_ms / wall_ms,
        "launches": sum(row.count for row in rows), "top": top,
    }  # fmt: skip


def measure(bundle: Path, findings: Findings, given: argparse.Namespace) -> None:
    """All of it."""
    meter = Meter(given.device)
    before, start = meter.mib(), time.perf_counter()
    with Captioner.open(bundle, device=given.device, check_sha256=False) as captioner:
        findings.note("open_s", time.perf_counter() - start)
        findings.note("decoder_bytes", (bundle / "decoder.gguf").stat().st_size)
        findings.note("mib", {"before": before, "open": meter.mib()})
        one = Measurement(captioner, meter, given.tokens)
        findings.attempt("first_request", lambda: stages(one.say(LENGTHS_S[0], 1)))
        findings.attempt("first_batch", one.first_batch)
        for seconds in given.lengths:
            findings.attempt(f"first_token_{seconds}s", partial(one.first_token, seconds))
        findings.attempt("caption", one.caption)
        for size in given.batches:
            findings.attempt(f"batch_{size}", partial(one.batch, size))
        if given.kernels:
            findings.attempt("kernels_first_token", lambda: kernels(lambda: one.say(BATCH_CLIP_S, 1)))
            findings.attempt("kernels_21_tokens", lambda: kernels(lambda: one.say(BATCH_CLIP_S, 21)))
            clips = [(noise(BATCH_CLIP_S, seed), RATE_HZ) for seed in range(32)]
            together = partial(captioner.caption_batch, clips, max_new_tokens=11, sampling=GREEDY, batch=32)
            findings.attempt("kernels_32_clips_11_tokens", lambda: kernels(together))


def numbers(text: str) -> list[int]:
    """ "1,8" -> [1, 8]."""
    return [int(part) for part in text.split(",") if part]


def main(arguments: Sequence[str] | None = None) -> int:
    """What goes wrong with a figure stands in its place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("findings", type=Path)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--lengths", type=numbers, default=list(LENGTHS_S))
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32, 64, 128])
    parser.add_argument("--kernels", action="store_true", help="profile, too")
    given = parser.parse_args(arguments)
    measure(given.bundle, Findings(given.findings), given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
