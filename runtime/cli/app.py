"""The command line: one command per verb. Results go to stdout, everything else to stderr.

Exit codes: 0 done, 1 failed (one `error:` line says why), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import math
import signal
import sys
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from dasheng_edge.runtime.errors import BundleVerifyError, DashengEdgeError

from . import speed as speed_cli
from .caption import caption
from .options import (
    AudioArgument,
    BundleArgument,
    DeviceOption,
    JsonOption,
    Sha256Option,
    ThreadsOption,
    check_stdin,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from dasheng_edge.runtime.machine.doctor import DoctorReport
    from dasheng_edge.runtime.verify import Seam, VerifyReport

# Commands of the other packages, loaded by name: the runtime must not import upwards.
COMMAND_MODULES = ("dasheng_edge.export.cli", "dasheng_edge.quant.cli")


class _Group(TyperGroup):
    """Turns our errors and Ctrl-C into one line and an exit code, whichever command they come from."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # the type is Click's own
        try:
            return super().invoke(ctx)
        except DashengEdgeError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from error


def build_app() -> typer.Typer:
    """The command line with the commands of all packages that are installed."""
    app = typer.Typer(cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_root)
    for command in (caption, embed, verify, info, doctor):
        app.command()(command)
    speed_cli.register(app)
    for name in COMMAND_MODULES:
        if find_spec(name) is not None:
            import_module(name).register(app)
    for each in app.registered_commands:
        # Typer would keep the line ends of all paragraphs but the first, which are not the terminal's.
        paragraphs = (inspect.getdoc(each.callback) or "").split("\n\n")
        each.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return app


def main() -> None:
    """Entry point of the `dasheng-edge` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a caption or path may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        if number := getattr(signal, name, None):
            signal.signal(number, _stop)
    try:
        build_app()(prog_name="dasheng-edge")
    except KeyboardInterrupt:  # while modules are imported, before `_Group` watches
        typer.echo("interrupted", err=True)
        sys.exit(130)


def _stop(number: int, _: object) -> None:
    """Ends the process like an error does, so that nothing half-written stays behind."""
    sys.exit(128 + number)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dasheng-edge {version('dasheng-edge')}")
        raise typer.Exit


def _root(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Captions audio, answers questions about it and embeds it, offline: MiDashengLM in ONNX Runtime and llama.cpp."""


def embed(
    bundle: BundleArgument,
    audio: AudioArgument,
    *,
    out: Annotated[Path, typer.Option(metavar="FILE.npz", help="File to write, for numpy.load.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per file.")] = False,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    check_sha256: Sha256Option = True,
) -> None:
    """Write what the encoder makes of audio files to an npz file: 25 vectors per second, and their mean.

    The file holds names, seconds and mean, which have a row for each audio file, and frames_0, frames_1, ... with
    the vectors of each: one row per 40 ms. Any bundle will do.

    An audio file that cannot be read costs one line on stderr and exit code 1; the others are still embedded, and
    names lists only those.
    """
    check_stdin(audio)
    if str(out) == "-":
        raise typer.BadParameter("an npz file cannot be written to stdout (-); name a file", param_hint="--out")
    for name in audio:
        with suppress(OSError):  # one of them is not there, so they are not the same
            if name != "-" and out.samefile(name):
                raise typer.BadParameter(f"{out} is one of the audio files; name another", param_hint="--out")
    from dasheng_edge.runtime.embedder import Embedder
    from dasheng_edge.runtime.jobs.embed_files import embed_files, say
    from dasheng_edge.runtime.jobs.embeddings_file import EmbeddingsWriter

    writer = EmbeddingsWriter(out, overwrite=overwrite)
    # In this order: where the bundle cannot be opened, nothing is written.
    with Embedder.open(bundle, device=device, threads=threads, check_sha256=check_sha256) as embedder, writer:
        done = embed_files(embedder, writer, audio, as_json=as_json)
        dim = embedder.dim
    if done.files and not as_json:
        size = f"{done.frames:,} frames of {dim} numbers from {done.audio_s:,.1f} s of audio"
        say(f"{out}: {done.files} of {len(audio)} files, {size}")
    if done.failed:
        raise typer.Exit(1)


def verify(
    bundle: BundleArgument,
    as_json: JsonOption = False,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
) -> None:
    """Replay the bundle's golden vectors here and print the error at each seam.

    The exit code is 1 if one is too large.
    """
    from dasheng_edge.runtime.bundle.bundle import Bundle
    from dasheng_edge.runtime.verify import verify_bundle

    report = verify_bundle(Bundle.open(bundle), device=device, threads=threads)
    if as_json:
        print_json(_verify_fields(report))
    else:
        _print_verify(report)
    if failed := [seam for seam in report.seams if not seam.ok]:
        worst = failed[0]
        raise BundleVerifyError(
            f"{len(failed)} of {len(report.seams)} comparisons of {bundle} are outside the tolerance, first "
            f"{worst.name} of {worst.clip}: {_number(worst)}, expected at most {worst.tolerance:g} {worst.unit}"
            f"{worst.note and f' ({worst.note})'}; copy or export the bundle again"
        )


def _verify_fields(report: VerifyReport) -> dict[str, object]:
    seams = [
        {
            **dataclasses.asdict(seam),
            "ok": seam.ok,
            "error": seam.error if math.isfinite(seam.error) else None,
        }
        for seam in report.seams
    ]
    return {"bundle": report.bundle, "ok": report.ok, "seams": seams}


def _number(seam: Seam) -> str:
    return f"{seam.error:.3g} {seam.unit}" if math.isfinite(seam.error) else str(seam.error)


def _print_verify(report: VerifyReport) -> None:
    from rich.table import Table
    from rich.text import Text

    columns = ("seam", "clips", "largest error", "on clip", "tolerance", "ok")
    table = Table(*columns, title=Text(f"verify {report.bundle}"))
    for name in dict.fromkeys(seam.name for seam in report.seams):
        seams = [seam for seam in report.seams if seam.name == name]
        # NaN compares with nothing, so it is put first by hand.
        worst = max(seams, key=lambda seam: math.inf if math.isnan(seam.error) else seam.error)
        ok = "yes" if all(seam.ok for seam in seams) else "NO"
        tolerance = f"{worst.tolerance:g} {worst.unit}"
        table.add_row(name, str(len(seams)), _number(worst), Text(worst.clip), tolerance, ok)
    print_table(table)


def info(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Say what a bundle is: model, precision, sizes, where it comes from."""
    from dasheng_edge.runtime.bundle.bundle import Bundle

    from .info import manifest_sections

    manifest = Bundle.open(bundle, check_sha256=False).manifest
    if as_json:
        typer.echo(manifest.model_dump_json(indent=2))
        return
    from rich.table import Table
    from rich.text import Text  # in a plain string, Rich would read [x] as markup

    table = Table(title=Text(f"{manifest.name} ({manifest.variant})"), show_header=False)
    for name, text in manifest_sections(manifest):
        table.add_row(name, Text(text), end_section=True)
    sizes = {**{name: facts.bytes for name, facts in manifest.files.items()}, "total": manifest.total_bytes}
    table.add_row("files", Text("\n".join(f"{name}: {size / 1e6:,.3f} MB" for name, size in sizes.items())))
    print_table(table)


def doctor(as_json: JsonOption = False) -> None:
    """Examine this machine and installation; exit code 1 if captioning will not work."""
    from dasheng_edge.runtime.machine.doctor import examine

    report = examine()
    if as_json:
        print_json(dataclasses.asdict(report), indent=2)
    else:
        _print_doctor(report)
    if report.problems:
        raise typer.Exit(1)


def _print_doctor(report: DoctorReport) -> None:
    from rich.table import Table
    from rich.text import Text

    memory = f"{report.memory_gib:.1f} GiB" if report.memory_gib is not None else "unknown"
    versions = [f"{name} {found or '- not installed'}" for name, found in report.versions.items()]
    table = Table(title="dasheng-edge doctor", show_header=False)
    for key, value in {
        "Python": report.python,
        "system": report.os,
        "CPU": f"{report.cpu}, {report.usable_cores} usable cores",
        "CPU features": " ".join(report.cpu_flags) or "unknown",
        "memory": memory,
        "packages": "\n".join(versions),
        "ONNX Runtime": ", ".join(report.onnx_providers) or "none",
        "llama.cpp": f"{report.llama_system or 'none'}\nGPU offload: {'yes' if report.llama_gpu_offload else 'no'}",
        "optional": "\n".join(f"{name}: {line}" for name, line in report.missing_extras.items()) or "all there",
        "problems": "\n".join(report.problems) or "none",
    }.items():
        table.add_row(key, Text(value), end_section=True)
    print_table(table)
