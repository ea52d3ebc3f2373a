"""`dasheng-edge export`: parse, export, print what each step cost."""

from __future__ import annotations

import dataclasses
import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from dasheng_edge.runtime.errors import MissingExtraError

from .options import DecoderType, EncoderPrecision, ExportOptions

if TYPE_CHECKING:
    from .bundle_export import ExportReport, StepReport


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("export")(export)


def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Local folder with config.json and safetensors.")
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="Folder to write.")],
    adapter: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="LoRA adapter (peft) to merge in; repeat for several, merged in order."),
    ] = None,
    encoder: Annotated[EncoderPrecision, typer.Option(help="Precision of the audio encoder.")] = "fp32",
    decoder: Annotated[
        DecoderType,
        typer.Option(metavar="TYPE", help=f"llama.cpp's file type of the decoder: {', '.join(get_args(DecoderType))}."),
    ] = "F16",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, for machines.")] = False,
) -> None:
    """Export a checkpoint, with its adapters merged in, to a bundle.

    Each step prints its error against its source. If one is out of tolerance, or anything else goes wrong,
    nothing is written.
    """
    options = ExportOptions(checkpoint, out, tuple(adapter or ()), encoder, decoder, overwrite)
    bundle_export = _bundle_export()
    with _Bars() as progress:
        report: ExportReport = bundle_export.export_bundle(options, progress)
    if as_json:
        typer.echo(_as_json(report))
        return
    typer.echo(f"{out}: {report.bytes / 1e6:.1f} MB in {report.seconds:.1f} s, every step within its tolerance")
    typer.echo(f"check it wherever it runs with: dasheng-edge verify {out}")


def _bundle_export() -> Any:
    """The exporter and everything heavy; a missing library is one sentence with the line that installs it."""
    try:
        return import_module("dasheng_edge.export.bundle_export")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("dasheng_edge"):
            raise
        raise MissingExtraError(
            f"export needs {error.name}, which is not installed; run pip install 'dasheng-edge[export,cpu]'"
        ) from error


class _Bars:
    """Progress on stderr: a bar for the step at hand, and a line with its error for each finished one."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeElapsedColumn()
        self._console = Console(stderr=True)
        self._bars = Progress(*columns, console=self._console, transient=True)
        self._step = self._bars.add_task("checkpoint", total=None, done="")
        self._total, self._unit = 0, ""

    def __enter__(self) -> _Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, step: str, total: int, unit: str) -> None:
        self._total, self._unit = total, unit
        self._bars.reset(self._step, description=step, total=total, done=self._done(0))

    def advance(self, amount: int) -> None:
        self._bars.advance(self._step, amount)
        self._bars.update(self._step, done=self._done(int(self._bars.tasks[0].completed)))

    def end(self, report: StepReport) -> None:
        self._console.print(step_line(report), highlight=False, soft_wrap=True, markup=False)

    def _done(self, amount: int) -> str:
        if self._unit == "bytes":
            return f"{amount / 1e6:.1f}/{self._total / 1e6:.1f} MB"
        return f"{amount}/{self._total} {self._unit}"


def step_line(step: StepReport) -> str:
    """One finished step: error, tolerance, size and time."""
    size = f"{step.bytes / 1e6:9.2f} MB" if step.bytes else " " * 12
    error = f"error {step.error:8.2e} of {step.tolerance:.1e} {step.unit}"
    return f"{step.name:15} {error:39} {size} {step.seconds:7.1f} s  {step.note}".rstrip()


def _as_json(report: ExportReport) -> str:
    return json.dumps({
        "bundle": str(report.bundle.folder),
        "bytes": report.bytes,
        "seconds": report.seconds,
        "steps": [dataclasses.asdict(step) for step in report.steps],
    })  # fmt: skip
