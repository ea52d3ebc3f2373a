"""The record of a speed benchmark: what was measured, on which machine, from which commit, and where it is stored."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.places import RESULTS
from benchmarks.records import machine
from dasheng_edge.runtime.atomic_output import replace_text
from dasheng_edge.runtime.machine.meters import cpu_use
from dasheng_edge.runtime.text.llama import build_info

SPEED_RESULTS = RESULTS / "speed"
SCHEMA_VERSION = 1
Record: TypeAlias = Mapping[str, Any]
BUSY = 0.05  # share of the machine that others used, above which medians over a few rounds move


class BenchmarkError(RuntimeError):
    """A benchmark cannot measure; the message says why and what to do."""


def make_record(benchmark: str, name: str, given: argparse.Namespace, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts with the card of the machine; `given` is what `benchmark.parser` made, and `name` the bundle's.

    `others_share` is the share of the machine that other programs used meanwhile; it should be near 0.
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


def publish(record: Record, path: Path, headline: Mapping[str, Any]) -> None:
    """Store the record, print the card and what matters most, and end with one line of JSON."""
    replace_text(path, json.dumps(record, indent=1) + "\n")
    print(machine.text(record["machine"]))
    print(f"{record['threads']} threads, model {record['model']}; the record is {path.name}")
    for name, value in headline.items():
        print(f"{name:48} {value:12.4g}" if isinstance(value, float) else f"{name:48} {value!s:>12}")
    if (record["others_share"] or 0) > BUSY:
        print(f"warning: other programs used {record['others_share']:.0%} of the machine meanwhile", file=sys.stderr)
    print(json.dumps({"benchmark": record["benchmark"], "model": record["model"], **headline}))


def failed(benchmark: str, error: Exception) -> int:
    """Say on stderr what went wrong; the exit status."""
    print(f"{benchmark}: {error}", file=sys.stderr)
    return 1
