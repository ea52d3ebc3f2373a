"""Writes benchmarks/RESULTS.md and its plots from the speed records; nothing on it is typed.

    python -m benchmarks.render

The last line is JSON: how many targets are met, missed, and without a record.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.records import machine
from benchmarks.records.plots import as_svg
from benchmarks.records.record import REPOSITORY, RESULTS, SCHEMA_VERSION, BenchmarkError, failed
from benchmarks.sections import SECTIONS, Section, section, table
from benchmarks.targets import LARGE, TARGETS, Outcome, Record, Records, Target, outcomes
from dasheng_edge.runtime.atomic_output import replace_text

PAGE = REPOSITORY / "benchmarks" / "RESULTS.md"
MADE_BY = {True: "make bench-full", False: "make bench"}  # whether the model is the large one
WORDS = {True: "yes", False: "**no**", None: "missing"}
INTRODUCTION = (
    "Written by `python -m benchmarks.render` from the records in [results/speed](results/speed), which hold "
    "every value that was measured; `make bench` and `make bench-full` make them. Weights are random, with the shapes "
    "of the published models: what is said differs, what it takes does not. Variants took turns in one run. A ratio is "
    "the median of the ratios of all rounds, p50 and p90 are over the rounds."
)


def read_records(folder: Path) -> Records:
    """All records in a folder.

    Raises:
        BenchmarkError: a file is no record that this version knows.
    """
    found: dict[tuple[str, str], Record] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text("utf-8"))
            version, name = record["schema_version"], (record["benchmark"], record["model"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BenchmarkError(f"{path.name} is no record of a speed benchmark ({error!r}); remove it") from error
        if version != SCHEMA_VERSION or name[0] not in SECTIONS:
            raise BenchmarkError(f"{path.name} is of version {version} of {name[0]!r}, expected {SCHEMA_VERSION} of "
                                 f"{', '.join(SECTIONS)}; measure it again")  # fmt: skip
        found[name] = record
    return {name: found[name] for name in sorted(found, key=lambda name: (list(SECTIONS).index(name[0]), name[1]))}


def page(records: Records, plots: str) -> str:
    """The page; `plots` is the folder of the plots, seen from it."""
    parts = ["# Speed and memory", INTRODUCTION, "## Targets", _targets(outcomes(records)), *_missing(records)]
    parts += _cards(list(records.values()))
    for (benchmark, model), record in records.items():
        one = _section(record)
        parts += [f"## {one.title}", _origin(record), one.text, f"![{one.title}]({plots}/{benchmark}-{model}.svg)"]
    return "\n\n".join(parts) + "\n"


def _section(record: Record) -> Section:
    """The section of a record.

    Raises:
        BenchmarkError: it lacks what this version measures.
    """
    try:
        return section(record)
    except KeyError as error:
        raise BenchmarkError(
            f"{record['benchmark']}-{record['model']}.json lacks {error}, which an older version did not measure; "
            "measure it again"
        ) from error


def _targets(found: Sequence[Outcome]) -> str:
    rows = [
        [
            one.target.what, one.target.against, _target(one.target),
            "missing" if one.value is None else _value(one.target, one.value), WORDS[one.met],
        ]
        for one in found
    ]  # fmt: skip
    return table(("what", "against", "target", "measured", "met"), rows, words=2)


def _target(target: Target) -> str:
    number = {
        "times": f"{target.bound:g}×", "share": f"{100 * target.bound:g} %", "seconds": f"{target.bound:g} s",
        "tokens": f"{target.bound:g}", "MB": f"{target.bound:g} MB",
    }[target.unit]  # fmt: skip
    return f"{'at most' if target.at_most else 'at least'} {number}"


def _value(target: Target, value: float) -> str:
    """With a digit more than the target needs: nothing that is missed is rounded to what is met."""
    if math.isnan(value):
        return "not comparable"
    digits = 3 if target.bound < 1.2 else 2
    return {
        "times": f"{value:.{digits}f}×", "share": f"{100 * value:.1f} %", "seconds": f"{value:.3f} s",
        "tokens": f"{value:g}", "MB": f"{value:.1f} MB",
    }[target.unit]  # fmt: skip


def _missing(records: Records) -> list[str]:
    """Which records there are not, and what makes them."""
    lacking = [name for name in dict.fromkeys(target.record for target in TARGETS) if name not in records]
    return [
        "\n".join(
            f"- The record `{benchmark}-{model}.json` is missing; `{MADE_BY[model == LARGE]}` makes it."
            for benchmark, model in lacking
        )
    ] if lacking else []  # fmt: skip


def _cards(records: Sequence[Record]) -> list[str]:
    """What the records were made on, each machine once."""
    names: dict[str, list[str]] = {}
    for record in records:
        names.setdefault(machine.text(record["machine"]), []).append(f"{record['benchmark']}-{record['model']}")
    parts = ["## Machine"] if names else []
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
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--out", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    try:
        found = render(given.results, given.out)
    except BenchmarkError as error:
        return failed("render", error)
    for one in found:
        if one.value is not None and not one.met:
            print(f"missed: {one.target.what}, against {one.target.against}: {_value(one.target, one.value)}, "
                  f"expected {_target(one.target)}")  # fmt: skip
    counts = Counter({True: "met", False: "missed", None: "missing"}[one.met] for one in found)
    print(json.dumps({"page": given.out.name, **{word: counts[word] for word in ("met", "missed", "missing")}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
