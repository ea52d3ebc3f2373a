"""Writes benchmarks/RESULTS.md and its plots from the speed records; nothing on it is typed.

    python -m benchmarks.render

Every module of `benchmarks.speed` has its place there by its `BENCHMARK`. The last line is JSON: how many targets are
met, missed, and without a record.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from benchmarks import speed
from benchmarks.places import REPOSITORY
from benchmarks.records import machine
from benchmarks.records.benchmark import LARGE, Benchmark, Target
from benchmarks.records.plots import as_svg
from benchmarks.records.record import (
    SCHEMA_VERSION,
    SPEED_RESULTS,
    BenchmarkError,
    Record,
    failed,
)
from benchmarks.records.section import NONE, Section, table
from dasheng_edge.runtime.atomic_output import replace_text

PAGE = REPOSITORY / "benchmarks" / "RESULTS.md"
MADE_BY = {True: "make bench-full", False: "make bench"}  # whether the model is the large one
WORDS = {True: "yes", False: "**no**", None: "missing"}
WHAT_IT_IS = (
    "How fast MiDashengLM is as a bundle of dasheng-edge, and how much memory it takes, beside PyTorch, transformers "
    "and llama.cpp's own programs on the same machine. Columns are the models."
)
HOW_IT_IS_MADE = (
    "`make bench` and `make bench-full` measure; `python -m benchmarks.render` writes this page from the records in "
    "[results/speed](results/speed), which hold every value that was measured. Weights are random, with the shapes of "
    "the published models: the words differ, the work does not. Variants take turns in one run. p50 and p90 are over "
    "the rounds, and a ratio is the median of the ratios of all rounds."
)
Records = Mapping[tuple[str, str], Record]  # by benchmark and model


@dataclass(frozen=True)
class Outcome:
    """A target and the measured value, None without a record."""

    target: Target
    record: tuple[str, str]  # benchmark and model
    value: float | None

    @property
    def met(self) -> bool | None:
        """None: not known."""
        return None if self.value is None else self.target.met(self.value)


def benchmarks() -> dict[str, Benchmark]:
    """Those of all modules of `benchmarks.speed`, in the order of the page."""
    modules = [import_module(f"{speed.__name__}.{module.name}").BENCHMARK for module in iter_modules(speed.__path__)]
    return {one.name: one for one in sorted(modules, key=lambda one: (one.rank, one.name))}


def outcomes(records: Records) -> list[Outcome]:
    """All targets, in the order of the page."""
    return [
        Outcome(target, name, target.measure(records[name]) if name in records else None)
        for benchmark in benchmarks().values()
        for target in benchmark.targets
        for name in [(benchmark.name, target.model)]
    ]


def read_records(folder: Path) -> Records:
    """All records in a folder, in the order of the page.

    Raises:
        BenchmarkError: a file is no record that this version knows.
    """
    records: dict[tuple[str, str], Record] = {}
    names = list(benchmarks())
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text("utf-8"))
            version, name = record["schema_version"], (record["benchmark"], record["model"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BenchmarkError(f"{path.name} is no record of a speed benchmark ({error!r}); remove it") from error
        if version != SCHEMA_VERSION or name[0] not in names:
            raise BenchmarkError(f"{path.name} is of version {version} of {name[0]!r}, expected {SCHEMA_VERSION} of "
                                 f"{', '.join(names)}; measure it again")  # fmt: skip
        records[name] = record
    return {name: records[name] for name in sorted(records, key=lambda name: (names.index(name[0]), name[1]))}


def page(records: Records, plots: str) -> str:
    """The page, what a reader wants first on top; `plots` is the folder of the plots, seen from it."""
    parts = ["# Speed and memory", WHAT_IT_IS, *_summary(records), HOW_IT_IS_MADE]
    for (benchmark, model), record in records.items():
        one = _section(record)
        parts += [f"## {one.title}", _origin(record), one.text, f"![{one.title}]({plots}/{benchmark}-{model}.svg)"]
    parts += _cards(list(records.values()))
    parts += ["## Targets", _targets(outcomes(records)), *_missing(records)]
    return "\n\n".join(parts) + "\n"


def _summary(records: Records) -> list[str]:
    """A column for each model, and what it was measured on."""
    columns: dict[str, dict[str, str]] = {}
    for (benchmark, model), record in records.items():
        if lines := benchmarks()[benchmark].summary(record):
            columns.setdefault(model, {}).update(lines)
    if not columns:
        return []
    labels = dict.fromkeys(label for lines in columns.values() for label in lines)
    rows = [[label, *(lines.get(label, NONE) for lines in columns.values())] for label in labels]
    machines = dict.fromkeys(machine.hardware(record["machine"]) for record in records.values())
    return [table(("", *columns), rows), f"Measured on {'; and on '.join(machines)}."]


def _section(record: Record) -> Section:
    """The section of a record.

    Raises:
        BenchmarkError: it lacks what this version measures.
    """
    try:
        return benchmarks()[record["benchmark"]].section(record)
    except KeyError as error:
        raise BenchmarkError(
            f"{record['benchmark']}-{record['model']}.json lacks {error}, which an older version did not measure; "
            "measure it again"
        ) from error


def _targets(outcomes: Sequence[Outcome]) -> str:
    rows = [
        [
            one.target.what, one.target.against, one.target.wanted,
            "missing" if one.value is None else one.target.shown(one.value), WORDS[one.met],
        ]
        for one in outcomes
    ]  # fmt: skip
    return table(("what", "against", "target", "measured", "met"), rows, words=2)


def _missing(records: Records) -> list[str]:
    """Which records there are not, and what makes them."""
    missing = [name for name in dict.fromkeys(one.record for one in outcomes(records)) if name not in records]
    return [
        "\n".join(
            f"- The record `{benchmark}-{model}.json` is missing; `{MADE_BY[model == LARGE]}` makes it."
            for benchmark, model in missing
        )
    ] if missing else []  # fmt: skip


def _cards(records: Sequence[Record]) -> list[str]:
    """What the records were made on, each machine once."""
    names: dict[str, list[str]] = {}
    for record in records:
        names.setdefault(machine.text(record["machine"]), []).append(f"{record['benchmark']}-{record['model']}")
    parts = ["## Machines"] if names else []
    for text, made in names.items():
        parts += [f"{', '.join(made)}:" if len(names) > 1 else "All of them:", f"```text\n{text}\n```"]
    return parts


def _origin(record: Record) -> str:
    commit = (record["machine"]["commit"] or "unknown")[:12]
    share = record["others_share"]
    others = "" if share is None else f"; other programs used {100 * share:.1f} % of the machine meanwhile"
    changed = " with changes" if record["machine"]["dirty"] else ""
    return (
        f"{record['date']}, commit {commit}{changed}, {record['threads']} threads, {record['rounds']} rounds, "
        f"{record['took_s']:.0f} s{others}."
    )


def render(results: Path, out: Path) -> list[Outcome]:
    """Write the page and its plots, which stand beside the records."""
    records = read_records(results)
    for (benchmark, model), record in records.items():
        replace_text(results / f"{benchmark}-{model}.svg", as_svg(_section(record).plot))
    replace_text(out, page(records, _seen_from(out, results)))
    return outcomes(records)


def _seen_from(out: Path, results: Path) -> str:
    """The folder of the records as a link on the page has it."""
    try:
        return results.resolve().relative_to(out.resolve().parent).as_posix()
    except ValueError:
        return results.resolve().as_posix()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if a record cannot be read; a missed target is no failure of this command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--results", type=Path, default=SPEED_RESULTS, help="folder of the records")
    parser.add_argument("--out", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    try:
        outcomes = render(given.results, given.out)
    except BenchmarkError as error:
        return failed("render", error)
    for one in outcomes:
        if one.value is not None and not one.met:
            print(f"missed: {one.target.what}, against {one.target.against}: {one.target.shown(one.value)}, "
                  f"expected {one.target.wanted}")  # fmt: skip
    counts = Counter({True: "met", False: "missed", None: "missing"}[one.met] for one in outcomes)
    print(json.dumps({"page": given.out.name, **{word: counts[word] for word in ("met", "missed", "missing")}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
