"""Many audio files -> one npz file: a file that fails costs a line, not the run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from dasheng_edge.runtime.embedder import Embedder
from dasheng_edge.runtime.errors import AudioError, DeviceError

from .embeddings_file import EmbeddingsWriter


@dataclass(frozen=True)
class Embedded:
    """What became of the files."""

    files: int  # that are in the npz file
    frames: int  # of all of them together
    audio_s: float
    failed: int


def embed_files(
    embedder: Embedder, writer: EmbeddingsWriter, names: Sequence[str], *, as_json: bool = False
) -> Embedded:
    """Embed files (- is stdin) and add them to the writer, which is finished if at least one could be read.

    Failures are printed to stderr as they happen; with `as_json`, each file is one line on stdout.
    """
    frames, audio_s = 0, 0.0
    with _progress(names, shown=not as_json) as advance:
        for name in names:
            try:
                embedding = embedder.embed(sys.stdin.buffer if name == "-" else name)
            except (AudioError, DeviceError) as error:
                if as_json:
                    _print_line({"audio": name, "error": str(error), "error_type": type(error).__name__})
                say(f"error: {error}", err=True)
            else:
                count, dim = embedding.frames.shape
                if as_json:
                    facts = {"audio_s": embedding.audio_s, "frames": count, "dim": dim}
                    _print_line({"audio": name, "index": len(writer), **facts})
                writer.add(name, embedding)
                frames, audio_s = frames + count, audio_s + embedding.audio_s
            advance()
        if len(writer):
            writer.finish(rate_hz=embedder.rate_hz, model=embedder.bundle.manifest.name)
    return Embedded(len(writer), frames, audio_s, len(names) - len(writer))


def _print_line(value: object) -> None:
    say(json.dumps(value, ensure_ascii=False))


def say(text: str, *, err: bool = False) -> None:
    """Print a line. That nobody reads on (`| head`) is no reason to lose the file, so it goes nowhere then."""
    try:
        typer.echo(text, err=err)
    except BrokenPipeError:
        stream = sys.stderr if err else sys.stdout
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())  # also for what Python flushes when it ends


@contextmanager
def _progress(names: Sequence[str], *, shown: bool) -> Generator[Callable[[], object]]:
    """A bar on stderr where somebody looks at it and there is more than one file."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    # Rich would print to the bar's console, stderr, what goes to stdout.
    bars = Progress(
        *Progress.get_default_columns(), console=console, transient=True, redirect_stdout=False,
        disable=not (shown and console.is_terminal and len(names) > 1),
    )  # fmt: skip
    with bars:
        task = bars.add_task("embed", total=len(names))
        yield lambda: bars.advance(task)
