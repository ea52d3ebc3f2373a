"""Exports every member of the family at full size and says what it took, what came out and how exact it is.

    python -m benchmarks.export.measure                      # micro, 0.6B and the three plain Dashengs
    python -m benchmarks.export.measure --full --save        # the 7B, too; the record goes to benchmarks/results

Checkpoints other than micro are synthetic: true shapes and names, random weights. Each step runs in a process of its
own. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.export.table import as_markdown, as_table, page
from benchmarks.places import MICRO, REPOSITORY, RESULTS
from benchmarks.records import machine
from benchmarks.records.measured_run import MeasuredRun, run_measured
from benchmarks.synthetic.shapes import ARCHITECTURES, PARAMETERS, Name, parameters, shapes
from dasheng_edge.runtime.atomic_output import replace_text

WORK = REPOSITORY / "build" / "export-benchmark"
RECORD = "export.json"
DRAFTS = REPOSITORY / "build" / "benchmarks"
SCHEMA_VERSION = 1
COMMAND = (sys.executable, "-c", "from dasheng_edge.runtime.cli.app import main; main()")
ROOM = 3.0  # free disk that is asked for, in sizes of the checkpoint: itself, an intermediate file, the bundle
ERROR_CHARACTERS = 600  # of what a failed command said last
_FOLDERS = re.compile(r"(?<![\w.:/])/(?!/)(?:[\w.+@-]+/)+")


@dataclass(frozen=True)
class Variant:
    """One line of the benchmark."""

    name: str
    published: Name | None  # None: MiDashengLM-micro, whose checkpoint is here, with its adapter
    decoder: str | None  # llama.cpp's file type; None: there is no decoder
    full: bool = False  # only with --full


VARIANTS = (
    Variant("micro", None, "F16"),
    Variant("0.6b", "0.6b", "F16"),
    Variant("dasheng-base", "dasheng-base", None),
    Variant("dasheng-0.6b", "dasheng-0.6b", None),
    Variant("dasheng-1.2b", "dasheng-1.2b", None),
    Variant("7b", "7b", "Q4_K_M", full=True),  # what fits a laptop
)


@dataclass
class Row:
    """What is known about one variant; `failure` says why something is missing."""

    variant: str
    synthetic: bool
    decoder_type: str | None
    layers: int | None = None  # None: all of them
    encoder_type: str | None = None
    checkpoint: dict[str, Any] = field(default_factory=dict)  # bytes, and seconds and peak RSS of making it
    parameters: dict[str, int] = field(default_factory=dict)  # by part, as the manifest counts them
    expected_parameters: dict[str, int] = field(default_factory=dict)
    export: dict[str, Any] = field(default_factory=dict)  # seconds, peak RSS, and the report's steps
    files: dict[str, int] = field(default_factory=dict)  # bytes
    verify: dict[str, Any] = field(default_factory=dict)  # seconds, peak RSS, and every seam of every clip
    failure: str | None = None


class StepFailedError(RuntimeError):
    """One step of a variant went wrong; the message says which and why."""


def measure(variant: Variant, decoder: str | None, work: Path, layers: int | None) -> Row:
    """Make the checkpoint if it is not there, export it, verify the bundle. Failures are in the row."""
    row = Row(variant.name, variant.published is not None, decoder, layers if variant.published else None)
    try:
        checkpoint = _checkpoint(variant, work, layers, row)
        row.expected_parameters = expected_parameters(variant.published, checkpoint, layers)
        bundle = work / f"{variant.name}-bundle"
        _export(variant, checkpoint, bundle, row)
        _read_manifest(bundle, row)
        _verify(bundle, row)
        row.failure = "; ".join(failures(row)) or None
    except StepFailedError as error:
        row.failure = str(error)
    return row


def _checkpoint(variant: Variant, work: Path, layers: int | None, row: Row) -> Path:
    if variant.published is None:
        folder = MICRO / "checkpoint"
    else:
        folder = work / f"{variant.name}-checkpoint"
        if not folder.exists():
            check_room(variant.published, work, layers)
            command = [sys.executable, "-m", "benchmarks.synthetic.checkpoint", variant.published, str(folder)]
            command += ["--layers", str(layers)] if layers else []
            row.checkpoint = cost(_succeed("synthetic_checkpoint", command))
    row.checkpoint["bytes"] = sum(path.stat().st_size for path in folder.iterdir())
    return folder


def check_room(name: Name, work: Path, layers: int | None) -> None:
    """Refuse before the work begins what will not fit.

    Raises:
        StepFailedError: there is too little room.
    """
    model = ARCHITECTURES[name].shrunken(layers) if layers else ARCHITECTURES[name]
    width = 2 if model.dtype == "bf16" else 4
    needed = int(ROOM * width * sum(parameters(shapes(model)).values()))
    free = shutil.disk_usage(work).free
    if free < needed:
        raise StepFailedError(f"{needed / 1e9:.0f} GB of disk needed, {free / 1e9:.0f} GB free; choose another --work")


def expected_parameters(name: Name | None, checkpoint: Path, layers: int | None) -> dict[str, int]:
    """Trained values by part: the published ones, for micro and for fewer layers the stored ones."""
    if name and not layers:
        return dict(PARAMETERS[name])
    stored: dict[str, tuple[int, ...]] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        stored |= {key: tuple(facts["shape"]) for key, facts in header.items() if key != "__metadata__"}
    return parameters(stored)


def _export(variant: Variant, checkpoint: Path, bundle: Path, row: Row) -> None:
    command = [*COMMAND, "export", str(checkpoint), "--out", str(bundle), "--json"]
    command += ["--decoder", row.decoder_type] if row.decoder_type else []
    command += ["--adapter", str(MICRO / "adapter")] if variant.published is None else []
    command += ["--overwrite"] if bundle.exists() else []
    run = _succeed("export", command)
    row.export = cost(run) | {"steps": last_json(run, "export")["steps"]}


def _read_manifest(bundle: Path, row: Row) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    row.encoder_type = manifest["encoder"]["precision"]
    counts = {
        "encoder": manifest["encoder"]["parameters"],
        "projector": manifest.get("projector_parameters"),
        "decoder": (manifest.get("decoder") or {}).get("parameters"),
    }
    row.parameters = {part: count for part, count in counts.items() if count is not None}
    row.files = {path.name: path.stat().st_size for path in sorted(bundle.iterdir())}


def _verify(bundle: Path, row: Row) -> None:
    run = run_measured([*COMMAND, "verify", str(bundle), "--json"], REPOSITORY)
    if run.returncode not in (0, 1):  # 1: a seam is out of tolerance, and the report says which
        raise StepFailedError(said("verify", run))
    row.verify = cost(run) | {"seams": last_json(run, "verify")["seams"]}


def _succeed(step: str, command: Sequence[str]) -> MeasuredRun:
    run = run_measured(command, REPOSITORY)
    if run.returncode != 0:
        raise StepFailedError(said(step, run))
    return run


def said(step: str, run: MeasuredRun) -> str:
    """Why a command failed, in its own last words; paths are cut to file names, as records go into the repository."""
    words = _FOLDERS.sub("", " ".join((run.stderr or run.stdout).split()))[-ERROR_CHARACTERS:]
    how = f"killed by signal {-run.returncode}" if run.returncode < 0 else f"exit status {run.returncode}"
    return f"{step}: {how}: {words or 'it said nothing'}"


def last_json(run: MeasuredRun, step: str) -> dict[str, Any]:
    """The JSON object on the last line of a command's output.

    Raises:
        StepFailedError: there is none.
    """
    lines = run.stdout.strip().splitlines()
    try:
        content = json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        raise StepFailedError(said(f"{step} printed no JSON", run)) from error
    if not isinstance(content, dict):
        raise StepFailedError(said(f"{step} printed a {type(content).__name__}, expected an object", run))
    return content


def cost(run: MeasuredRun) -> dict[str, Any]:
    """Seconds and bytes of a command."""
    return {
        "seconds": round(run.seconds, 2),
        "peak_rss_bytes": run.peak_rss_bytes,
        "peak_anonymous_bytes": run.peak_anonymous_bytes,
    }


def failures(row: Row) -> list[str]:
    """What does not hold although every command succeeded."""
    wrong = [
        f"{part} has {row.parameters.get(part)} parameters, expected {row.expected_parameters.get(part)}"
        for part in row.parameters.keys() | row.expected_parameters.keys()
        if row.parameters.get(part) != row.expected_parameters.get(part)
    ]
    seams = row.verify["seams"]
    wrong += [] if seams else ["verify compared nothing"]
    wrong += [
        f"verify: {seam['name']} of {seam['clip']} is {seam['error']}, expected at most {seam['tolerance']}"
        for seam in seams
        if not seam["ok"]
    ]
    return sorted(wrong)


def save_record(rows: Iterable[Row], path: Path) -> dict[str, Any]:
    """Write the record, raw values and all, and its page beside it; an older one is replaced whole or not at all."""
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "benchmark": "export",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": machine.card(),
        "variants": [dataclasses.asdict(row) for row in rows],
    }
    replace_text(path, json.dumps(record, indent=1) + "\n")
    replace_text(path.with_suffix(".md"), page(record, machine.text(record["machine"])))
    return record


def _remove(work: Path, variant: Variant) -> None:
    for what in ("checkpoint", "bundle"):
        shutil.rmtree(work / f"{variant.name}-{what}", ignore_errors=True)


def measure_all(
    chosen: Sequence[Variant], decoder: str | None, work: Path, layers: int | None, *, keep: bool
) -> list[Row]:
    """One row for each variant; what was made for it is removed before the next, unless it is kept."""
    console, rows = Console(stderr=True), []
    work.mkdir(parents=True, exist_ok=True)
    for variant in chosen:
        console.print(f"export: {variant.name} ...", highlight=False)
        try:
            rows.append(measure(variant, variant.decoder and (decoder or variant.decoder), work, layers))
        finally:
            if not keep:
                _remove(work, variant)
    if not keep and not any(work.iterdir()):
        work.rmdir()
    return rows


def choose(names: str | None, *, full: bool) -> tuple[Variant, ...]:
    """The variants that are asked for, in the order of the table.

    Raises:
        ValueError: a name is not one of them.
    """
    if names is None:
        return tuple(variant for variant in VARIANTS if full or not variant.full)
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in {variant.name for variant in VARIANTS}]:
        raise ValueError(f"unknown variant {unknown[0]!r}, expected some of {','.join(v.name for v in VARIANTS)}")
    return tuple(variant for variant in VARIANTS if variant.name in wanted)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="export", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--variants", help="some of them, with commas; default: all but the 7B")
    parser.add_argument("--full", action="store_true", help="the 7B, too: 17 GB of checkpoint, and time")
    parser.add_argument("--decoder", metavar="TYPE", help="one type for all decoders")
    parser.add_argument("--layers", type=int, help="fewer blocks and layers, for a quick try")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--work", type=Path, default=WORK, help="where to work; what is made there is removed")
    place.add_argument("--keep", type=Path, help="work here, take checkpoints that are there, and remove nothing")
    parser.add_argument("--save", action="store_true", help="put the record and its page into benchmarks/results")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if a variant failed."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        chosen = choose(given.variants, full=given.full)
    except ValueError as error:
        parser.error(str(error))
    rows = measure_all(chosen, given.decoder, given.keep or given.work, given.layers, keep=given.keep is not None)
    record = save_record(rows, (RESULTS if given.save else DRAFTS) / RECORD)
    if given.markdown:
        print(as_markdown(record["variants"]))
    else:
        print(machine.text(record["machine"]))
        Console(width=max(120, Console().width)).print(as_table(record["variants"]))
    for row in rows:
        if row.failure:
            print(f"{row.variant} failed: {row.failure}")
    print(json.dumps(summary(record["variants"])))
    return int(any(row.failure for row in rows))


def summary(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The record in one line: what each variant took, and whether it failed."""
    return {
        row["variant"]: {
            "seconds": row["export"].get("seconds"),
            "peak_rss_bytes": row["export"].get("peak_rss_bytes"),
            "bytes": sum(row["files"].values()),
            "failure": row["failure"],
        }
        for row in rows
    }


if __name__ == "__main__":
    sys.exit(main())
