"""`dasheng-edge embed`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dasheng_edge.runtime.machine.devices import ON_CPU
from dasheng_edge.runtime.names import printable, printable_json

from .options import (
    AudioArgument,
    BundleArgument,
    DeviceOption,
    JsonLinesOption,
    LowMemoryOption,
    OverwriteOption,
    Sha256Option,
    Tf32Option,
    ThreadsOption,
    check_stdin,
    engine_options,
)

if TYPE_CHECKING:
    from rich.progress import Progress

    from dasheng_edge.runtime.output.embed_files import EmbeddedFile


def embed(
    bundle: BundleArgument,
    audio: AudioArgument,
    *,
    out: Annotated[Path, typer.Option(metavar="FILE.npz", help="File to write, for numpy.load.")],
    overwrite: OverwriteOption = False,
    as_json: JsonLinesOption = False,
    device: DeviceOption = ON_CPU,
    allow_tf32: Tf32Option = False,
    threads: ThreadsOption = None,
    low_memory: LowMemoryOption = False,
    check_sha256: Sha256Option = True,
) -> None:
    """Write embeddings of audio files, 25 vectors per second, to an npz file.

    The file holds names, seconds and mean, which have a row for each audio file, and frames_0, frames_1, ... with
    the vectors of each: one row per 40 ms. Any bundle will do.

    An audio file that cannot be read costs one line on stderr and exit code 1; the others are still embedded, and
    names lists only those.
    """
    check_stdin(audio)
    _check_out(out, audio)
    from dasheng_edge.runtime.embedder import Embedder
    from dasheng_edge.runtime.output.embed_files import embed_files
    from dasheng_edge.runtime.output.embeddings_file import EmbeddingsWriter

    writer = EmbeddingsWriter(out, overwrite=overwrite)
    results: list[EmbeddedFile] = []
    # In this order: if the bundle cannot be opened, nothing is written.
    options = engine_options(bundle, device, threads, allow_tf32, low_memory)
    with Embedder.open(bundle, options=options, check_sha256=check_sha256) as embedder, writer:
        dim = embedder.dim
        with _bars(len(audio), shown=not as_json) as bars:
            for result in bars.track(embed_files(embedder, writer, audio), len(audio), description="embed"):
                results.append(result)
                _print_result(result, dim, as_json=as_json)
    done = [result for result in results if result.error is None]
    if done and not as_json:
        frames, audio_s = sum(result.frames for result in done), sum(result.audio_s for result in done)
        size = f"{frames:,} frames of {dim} numbers from {audio_s:,.1f} s of audio"
        _print(f"{out}: {len(done)} of {len(audio)} files, {size}")
    if len(done) < len(audio):
        raise typer.Exit(1)


def _check_out(out: Path, audio: Sequence[str]) -> None:
    """Refuse a name that says something else than the output will be, or that is an input's."""
    if str(out) == "-":
        raise typer.BadParameter("an npz file cannot be written to stdout (-); name a file", param_hint="--out")
    for name in audio:
        with suppress(OSError):  # one of them does not exist, so they are not the same
            if name != "-" and out.samefile(name):
                raise typer.BadParameter(f"{out} is one of the audio files; name another", param_hint="--out")
    if out.suffix.lower() != ".npz" and not out.is_dir():
        raise typer.BadParameter(f"{out} will be an npz file; name it {out}.npz", param_hint="--out")


def _print_result(result: EmbeddedFile, dim: int, *, as_json: bool) -> None:
    """A line for an audio file: with --json on stdout, and its error on stderr."""
    fields: dict[str, object] = {"audio": result.name}
    if result.error is None:
        fields |= {"index": result.index, "audio_s": result.audio_s, "frames": result.frames, "dim": dim}
        fields |= {"warnings": result.warnings} if result.warnings else {}
    else:
        fields |= {"error": str(result.error), "error_type": type(result.error).__name__}
    if as_json:
        _print(printable_json(json.dumps(fields, ensure_ascii=False)))
    for warning in result.warnings:
        _print(f"warning: {result.name}: {warning}", err=True)
    if result.error is not None:
        _print(f"error: {result.error}", err=True)


def _print(text: str, *, err: bool = False) -> None:
    """Print a line. That nobody reads on (`| head`) is no reason to lose the npz file: it goes nowhere then."""
    try:
        typer.echo(printable(text), err=err)
    except BrokenPipeError:
        stream = sys.stderr if err else sys.stdout
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())  # also for what Python flushes when it ends


def _bars(files: int, *, shown: bool) -> Progress:
    """A bar on stderr if that is a terminal and there is more than one file."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    hidden = not (shown and console.is_terminal and files > 1)
    # Rich would print to the bar's console, stderr, what goes to stdout.
    return Progress(console=console, transient=True, redirect_stdout=False, disable=hidden)
