"""The record of `benchmarks.export.measure` as a table: a column for each variant, so that it fits 120 characters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

Row = Mapping[str, Any]
NONE = "-"
EXPLANATION = (
    "Checkpoints with random weights have the names and shapes of the published ones (the 0.6B's names are not "
    "known for certain). Parameters are counted from the bundle and compared with the published figures; those of "
    "the 0.6B and of Dasheng follow from their architecture. Peak RSS is that of the exporting process with its "
    "children, mapped file pages included. The errors are relative RMS where no unit stands beside them: each "
    "file against the fp32 source at export, and each seam of the runtime against the fp32 reference in `verify`. "
    "The reference computes every layer of every model, one at a time."
)


def table_lines(rows: Sequence[Row]) -> list[list[str]]:
    """Lines of the table, a label and a cell for each variant; the first is the head."""

    def line(label: str, cell: Callable[[Row], str]) -> list[str]:
        return [label, *(cell(row) for row in rows)]

    return [
        line("", lambda row: str(row["variant"])),
        line("result", lambda row: "failed, see below" if row["failure"] else "ok"),
        line("weights", lambda row: ("random" if row["synthetic"] else "trained") + _layers(row)),
        line("encoder, decoder type", _types),
        *(line(f"{part} parameters", partial(_parameters, part)) for part in ("encoder", "projector", "decoder")),
        line("parameters as published", _as_published),
        line("checkpoint", lambda row: _size(row["checkpoint"].get("bytes"))),
        line("export, seconds", lambda row: _seconds(row["export"])),
        line("  peak RSS", lambda row: _memory(row["export"].get("peak_rss_bytes"))),
        line("  of it anonymous", lambda row: _memory(row["export"].get("peak_anonymous_bytes"))),
        *(line(name, partial(_file, name)) for name in _names(row["files"] for row in rows)),
        *_error_lines("export", [worst(row["export"].get("steps", [])) for row in rows]),
        line("verify, seconds", lambda row: _seconds(row["verify"])),
        line("  peak RSS", lambda row: _memory(row["verify"].get("peak_rss_bytes"))),
        *_error_lines("verify", [worst(row["verify"].get("seams", [])) for row in rows]),
    ]


def _error_lines(label: str, measured: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[list[str]]:
    return [[f"{label}: {name}", *(_error(one.get(name)) for one in measured)] for name in _names(measured)]


def worst(measured: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The largest error of each seam or step over all clips; NaN counts as the largest."""
    largest: dict[str, Mapping[str, Any]] = {}
    for one in measured:
        name = one["name"]
        if name not in largest or _magnitude(one) > _magnitude(largest[name]):
            largest[name] = one
    return largest


def as_table(rows: Sequence[Row]) -> Table:
    """For a terminal."""
    head, *lines = table_lines(rows)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, title in enumerate(head):
        table.add_column(title, justify="right" if i else "left", no_wrap=not i)
    for line in lines:
        table.add_row(*line)
    return table


def page(record: Mapping[str, Any], machine: str) -> str:
    """The record as a page; `machine` is the card of the machine as text."""
    failures = [f"{row['variant']} failed: {row['failure']}" for row in record["variants"] if row["failure"]]
    return "\n\n".join([
        "# Every member of the family, exported at full size",
        f"Written by `python -m benchmarks.export.measure`, {record['date']}, from the record beside it; on",
        f"```text\n{machine}\n```",
        as_markdown(record["variants"]),
        *failures,
        EXPLANATION,
    ]) + "\n"  # fmt: skip


def as_markdown(rows: Sequence[Row]) -> str:
    """For a page."""
    head, *lines = table_lines(rows)
    rule = ["---", *("---:" for _ in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def _names(measured: Iterable[Mapping[str, Any]]) -> list[str]:
    """Keys in the order in which they first appear."""
    return list(dict.fromkeys(name for one in measured for name in one))


def _magnitude(one: Mapping[str, Any]) -> float:
    error = one["error"]
    return math.inf if error is None or math.isnan(error) else float(error)


def _layers(row: Row) -> str:
    return f", depth {row['layers']}" if row["layers"] else ""


def _types(row: Row) -> str:
    return ", ".join(kind for kind in (row["encoder_type"], row["decoder_type"]) if kind) or NONE


def _file(name: str, row: Row) -> str:
    return _size(row["files"].get(name))


def _parameters(part: str, row: Row) -> str:
    got, expected = row["parameters"].get(part), row["expected_parameters"].get(part)
    if not row["parameters"] or (got is None and expected is None):
        return NONE
    return f"{got:,}" if got == expected else f"{got}, not {expected}"


def _as_published(row: Row) -> str:
    if not row["parameters"]:
        return NONE
    return "yes" if row["parameters"] == row["expected_parameters"] else "NO"


def _seconds(step: Mapping[str, Any]) -> str:
    return f"{step['seconds']:.1f}" if step else NONE


def _memory(size: int | None) -> str:
    return NONE if size is None else f"{size / 2**30:.2f} GiB"


def _size(size: int | None) -> str:
    if size is None:
        return NONE
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _error(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return NONE
    error = one["error"]
    unit = {"dB": " dB", "logits": " logits", "tokens": " tokens", "nepers": " nepers"}.get(one["unit"], "")
    return "no number" if error is None else f"{error:.1e}{unit}"
