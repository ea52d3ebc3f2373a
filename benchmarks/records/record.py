"""The record of a speed benchmark: what was measured, on what, from which commit, and where it is kept."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.records import machine
from benchmarks.records.turns import LEAST_ROUNDS
from dasheng_edge.runtime.atomic_output import replace_text
from dasheng_edge.runtime.bundle.bundle import Bundle
from dasheng_edge.runtime.errors import DashengEdgeError
from dasheng_edge.runtime.machine.devices import usable_cores
from dasheng_edge.runtime.machine.meters import cpu_use
from dasheng_edge.runtime.text.llama import build_info

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results" / "speed"
SCHEMA_VERSION = 1
Headline: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # what matters most of a record
BUSY = 0.05  # share of the machine that others used, above which medians over a few rounds move


class BenchmarkError(RuntimeError):
    """A benchmark cannot measure what it is for; the message says why and what to do."""


def parser(doc: str | None, *positional: str) -> argparse.ArgumentParser:
    """Options that all speed benchmarks have, after folders such as CHECKPOINT and BUNDLE."""
    found = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    for name in positional:
        found.add_argument(name, type=Path)
    found.add_argument("--model", help="what the record calls the model; default: the bundle's name")
    found.add_argument("--rounds", type=_rounds, default=LEAST_ROUNDS, help="turns of each variant that are kept")
    found.add_argument("--threads", type=int, default=usable_cores(), help="of every variant; default: usable cores")
    found.set_defaults(began=cpu_use())
    found.add_argument("--out", type=Path, help="file of the record; default: BENCHMARK-MODEL.json in results/speed")
    return found


def _rounds(text: str) -> int:
    if not text.isdigit() or int(text) < LEAST_ROUNDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds from {LEAST_ROUNDS} on")
    return int(text)


def make_record(benchmark: str, name: str, given: argparse.Namespace, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts with the card of the machine; `given` is what `parser` made, and `name` the bundle's.

    `others_share` is how much of the machine somebody else used meanwhile, which should be almost nothing.
    """
    ended = cpu_use()
    others = given.began.others_share(ended)
    return {
        "schema_version": SCHEMA_VERSION,
        "benchmark": benchmark,
        "model": given.model or name,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "threads": given.threads,
        "rounds": given.rounds,
        "took_s": round(ended.clock_s - given.began.clock_s, 1),
        "others_share": None if others is None else round(others, 3),
        "machine": machine.card(),
        "llama_cpp": build_info()[0],
        **facts,
    }


def publish(record: Mapping[str, Any], out: Path | None, headline: Mapping[str, Any]) -> Path:
    """Keep the record, print the card and what matters most, and end with one line of JSON."""
    path = out or RESULTS / f"{record['benchmark']}-{record['model']}.json"
    replace_text(path, json.dumps(record, indent=1) + "\n")
    print(machine.text(record["machine"]))
    print(f"{record['threads']} threads, model {record['model']}; the record is {path.name}")
    for name, value in headline.items():
        print(f"{name:48} {value:12.4g}" if isinstance(value, float) else f"{name:48} {value!s:>12}")
    if (record["others_share"] or 0) > BUSY:
        print(f"warning: other programs used {record['others_share']:.0%} of the machine meanwhile", file=sys.stderr)
    print(json.dumps({"benchmark": record["benchmark"], "model": record["model"], **headline}))
    return path


def run(
    benchmark: str, given: argparse.Namespace, measure: Callable[[Bundle], dict[str, Any]], headline: Headline
) -> int:
    """Measure a bundle and publish the record; the exit status, 1 if it cannot be measured."""
    try:
        bundle = Bundle.open(given.bundle, check_sha256=False)
        facts = measure(bundle)
    except (BenchmarkError, DashengEdgeError) as error:
        return failed(benchmark, error)
    record = make_record(benchmark, bundle.manifest.name, given, facts)
    publish(record, given.out, headline(record))
    return 0


def failed(benchmark: str, error: Exception) -> int:
    """Say on stderr what went wrong; the exit status."""
    print(f"{benchmark}: {error}", file=sys.stderr)
    return 1
