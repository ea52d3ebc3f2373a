"""What a speed benchmark says about itself: how its records are summed up, shown and judged."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from benchmarks.records.record import SPEED_RESULTS, BenchmarkError, Record, failed, make_record, publish
from benchmarks.records.section import Section
from benchmarks.records.turns import MIN_ROUNDS
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.errors import DashengEdgeError
from dasheng_edge.runtime.machine.devices import usable_cores
from dasheng_edge.runtime.machine.meters import cpu_use

ENCODER, SMALL, LARGE = "dasheng-0.6b", "0.6b", "7b"  # what `make bench` and `make bench-full` call their models
Unit: TypeAlias = Literal["times", "share", "seconds", "tokens", "MB"]

_UNITS: Mapping[Unit, tuple[float, str]] = {
    "times": (1, "×"), "share": (100, " %"), "seconds": (1, " s"), "tokens": (1, ""), "MB": (1, " MB"),
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A bound that a number of a record should keep."""

    what: str
    against: str
    bound: float
    unit: Unit
    model: str  # of the record
    measure: Callable[[Record], float]
    at_most: bool = False  # otherwise at least

    def met(self, value: float) -> bool:
        """Whether a value keeps the bound; NaN does not."""
        return value <= self.bound if self.at_most else value >= self.bound

    @property
    def wanted(self) -> str:
        """The bound in words."""
        scale, unit = _UNITS[self.unit]
        return f"{'at most' if self.at_most else 'at least'} {scale * self.bound:g}{unit}"

    def shown(self, value: float) -> str:
        """A value, with one digit more than the bound, so that no miss is rounded to a hit."""
        if math.isnan(value):
            return "not comparable"
        scale, unit = _UNITS[self.unit]
        digits = {"times": 3 if self.bound < 1.2 else 2, "seconds": 3, "tokens": 0}.get(self.unit, 1)
        return f"{scale * value:.{digits}f}{unit}"


@dataclass(frozen=True)
class Benchmark:
    """What a module of `benchmarks.speed` says about its records, as `BENCHMARK`."""

    name: str  # of the module and of its records
    headline: Callable[[Record], Mapping[str, Any]]  # what matters most, for the JSON at the end
    section: Callable[[Record], Section]
    summary: Callable[[Record], Mapping[str, str]] = lambda _: {}  # its lines of the table that opens the page
    targets: Sequence[Target] = ()
    rank: int = 9  # its place on the page


def parser(doc: str | None, *positional: str) -> argparse.ArgumentParser:
    """A parser with the folders that a benchmark asks for and the options that all have."""
    options = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    for name in positional:
        options.add_argument(name, type=Path)
    options.add_argument("--model", help="what the record calls the model; default: the bundle's name")
    options.add_argument("--rounds", type=_rounds, default=MIN_ROUNDS, help="turns of each variant that are kept")
    options.add_argument("--threads", type=int, default=usable_cores(), help="of every variant; default: usable cores")
    options.set_defaults(began=cpu_use())
    options.add_argument("--out", type=Path, help="file of the record; default: BENCHMARK-MODEL.json in results/speed")
    return options


def _rounds(text: str) -> int:
    if not text.isdigit() or int(text) < MIN_ROUNDS:
        raise argparse.ArgumentTypeError(f"got {text!r} rounds, expected a whole number, at least {MIN_ROUNDS}")
    return int(text)


def run(benchmark: Benchmark, given: argparse.Namespace, measure: Callable[[Bundle], dict[str, Any]]) -> int:
    """Measure a bundle and publish the record; the exit status, 1 if it cannot be measured."""
    try:
        bundle = Bundle.open(given.bundle, check_sha256=False)
        facts = measure(bundle)
    except (BenchmarkError, DashengEdgeError) as error:
        return failed(benchmark.name, error)
    record = make_record(benchmark.name, bundle.manifest.name, given, facts)
    publish(record, given.out or SPEED_RESULTS / f"{benchmark.name}-{record['model']}.json", benchmark.headline(record))
    return 0
