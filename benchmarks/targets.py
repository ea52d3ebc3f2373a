"""What the speed is to be, and whether the records say that it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.peers.llama_bench import SAME
from benchmarks.records.turns import times
from benchmarks.speed import decoder, encoder, latency, memory, peers

Record = Mapping[str, Any]
Records = Mapping[tuple[str, str], Record]  # by benchmark and model
Unit = Literal["times", "share", "seconds", "tokens", "MB"]
ENCODER, SMALL, LARGE = "dasheng-0.6b", "0.6b", "7b"  # what `make bench` and `make bench-full` call their models
MEMORY_FACTOR = 1.1  # of the bundle's bytes, beside which peak memory is counted


@dataclass(frozen=True)
class Target:
    """One line of the table."""

    what: str
    against: str
    bound: float
    unit: Unit
    record: tuple[str, str]
    measure: Callable[[Record], float]
    at_most: bool = False  # otherwise at least

    def met(self, value: float) -> bool:
        """Whether a value is as good as it is to be; NaN is not."""
        return value <= self.bound if self.at_most else value >= self.bound


@dataclass(frozen=True)
class Outcome:
    """A target and what was measured; None where there is no record."""

    target: Target
    value: float | None

    @property
    def met(self) -> bool | None:
        """None: not known."""
        return None if self.value is None else self.target.met(self.value)


def outcomes(records: Records) -> list[Outcome]:
    """All targets, in their order."""
    return [
        Outcome(target, target.measure(records[target.record]) if target.record in records else None)
        for target in TARGETS
    ]


def _encoder(slower: str, faster: str) -> Callable[[Record], float]:
    def measure(record: Record) -> float:
        seconds = record["seconds"][encoder.CHUNK]
        return times(seconds[slower], seconds[faster])

    return measure


def _decoder(what: str) -> Callable[[Record], float]:
    def measure(record: Record) -> float:
        if record["llama_bench"] != SAME:  # built for any CPU, it is easily outrun
            return math.nan
        speeds = record["tokens_per_s"][what]
        return times(speeds[decoder.OURS], speeds[decoder.BENCH])

    return measure


def _peer(dtype: str, what: str) -> Callable[[Record], float]:
    def measure(record: Record) -> float:
        variants = record["variants"]
        return times(variants[f"transformers {dtype}"][what], variants[peers.OURS][what])

    return measure


def _prefix_tokens(record: Record) -> float:
    clips = record["clips"][latency.SECOND].values()
    return max(float(value) for clip in clips for value in clip["prefix_tokens_prefilled"]["values"])


def _over_bundle_mb(record: Record) -> float:
    peak = record[memory.CAPTION]["peak_rss_bytes"]["p50"]
    return float(peak - MEMORY_FACTOR * record["bundle_bytes"]) / 1e6


def _import_s(record: Record) -> float:
    imports = record["import_s"]
    return float(imports["runtime"]["p50"] - imports["numpy"]["p50"])


def _start(record: Record) -> float:
    return times(record["start_s"][latency.RUNTIME], record["start_s"][latency.BARE])


def _long(record: Record) -> tuple[Record, Record]:
    """What encoding short audio took, and long."""
    lengths: Sequence[Record] = list(record["encode"].values())
    return lengths[0], lengths[-1]


def _long_encoder(record: Record) -> float:
    short, long = _long(record)
    return times(long["encoder_s"], short["encoder_s"])


def _long_memory_mb(record: Record) -> float:
    short, long = _long(record)
    return float(long["peak_rss_bytes"]["p50"] - short["peak_rss_bytes"]["p50"]) / 1e6


_ENCODER_RECORD = ("encoder", ENCODER)
_LATENCY, _MEMORY = ("latency", SMALL), ("memory", SMALL)
_WARM = "time to first token, 10 s of audio, 0.6B int8 + Q4_K_M, prompt in the cache"
_WHOLE = "caption of 40 tokens, 10 s of audio,"
_BENCH = "llama-bench, same file, same library, same threads"
TARGETS = (
    Target(
        "encoder 630M int8", "ONNX Runtime fp32, same graph", 3.6, "times", _ENCODER_RECORD,
        _encoder(encoder.EXACT, encoder.INT8),
    ),
    Target(
        "encoder 630M int8", "PyTorch bf16", 1.9, "times", _ENCODER_RECORD,
        _encoder(encoder.TORCH_BF16, encoder.INT8),
    ),
    Target(
        "encoder 630M ONNX Runtime fp32", "PyTorch fp32", 3.0, "times", _ENCODER_RECORD,
        _encoder(encoder.TORCH, encoder.EXACT),
    ),
    Target(
        "encoder 630M int8", "its GEMMs alone in int8", 0.8, "share", _ENCODER_RECORD,
        _encoder(encoder.PEAK, encoder.INT8),
    ),
    *(
        Target(f"{what}, {name} Q4_K_M", _BENCH, 0.97, "times", ("decoder", model), _decoder(what))
        for name, model in (("0.6B", SMALL), ("7B", LARGE))
        for what in ("prefill", "decode")
    ),
    Target(_WARM, "transformers fp32", 3.5, "times", ("peers", SMALL), _peer("fp32", "first_token_s")),
    Target(_WARM, "transformers bf16", 1.4, "times", ("peers", SMALL), _peer("bf16", "first_token_s")),
    Target(f"{_WHOLE} 0.6B", "transformers fp32", 7.0, "times", ("peers", SMALL), _peer("fp32", "total_s")),
    Target(f"{_WHOLE} 0.6B", "transformers bf16", 4.0, "times", ("peers", SMALL), _peer("bf16", "total_s")),
    Target(f"{_WHOLE} 7B", "transformers bf16", 4.0, "times", ("peers", LARGE), _peer("bf16", "total_s")),
    Target(
        "static tokens of the prompt that a second clip prefills again", "the first clip", 0.0, "tokens", _LATENCY,
        _prefix_tokens, at_most=True,
    ),
    Target(
        f"peak resident memory of captioning, beyond {MEMORY_FACTOR:g} times the bundle", "the bundle's bytes", 250.0,
        "MB", _MEMORY, _over_bundle_mb, at_most=True,
    ),
    Target(
        "import dasheng_edge.runtime, beyond import numpy", "a process that imports numpy", 0.25, "seconds", _LATENCY,
        _import_s, at_most=True,
    ),
    Target(
        "process start to first token, files unchecked, nothing kept on disk", "the engines alone, same work", 1.15,
        "times", _LATENCY, _start, at_most=True,
    ),
    Target(
        "encoder time, 10 min of audio", "1 min of audio", 10.5, "times", _MEMORY, _long_encoder, at_most=True
    ),
    Target(
        "peak resident memory, 10 min of audio, beyond that of 1 min", "1 min of audio", 50.0, "MB", _MEMORY,
        _long_memory_mb, at_most=True,
    ),
)  # fmt: skip
