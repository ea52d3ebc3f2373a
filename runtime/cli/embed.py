"""`dasheng-edge embed`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    AudioArgument,
    BundleArgument,
    DeviceOption,
    JsonLinesOption,
    OverwriteOption,
    Sha256Option,
    ThreadsOption,
    check_stdin,
    engine_options,
)


def embed(
    bundle: BundleArgument,
    audio: AudioArgument,
    *,
    out: Annotated[Path, typer.Option(metavar="FILE.npz", help="File to write, for numpy.load.")],
    overwrite: OverwriteOption = False,
    as_json: JsonLinesOption = False,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
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
    from dasheng_edge.runtime.jobs.embed_files import embed_files, say
    from dasheng_edge.runtime.jobs.embeddings_file import EmbeddingsWriter

    writer = EmbeddingsWriter(out, overwrite=overwrite)
    # In this order: where the bundle cannot be opened, nothing is written.
    options = engine_options(device, threads)
    with Embedder.open(bundle, options=options, check_sha256=check_sha256) as embedder, writer:
        done = embed_files(embedder, writer, audio, as_json=as_json)
        dim = embedder.dim
    if done.files and not as_json:
        size = f"{done.frames:,} frames of {dim} numbers from {done.audio_s:,.1f} s of audio"
        say(f"{out}: {done.files} of {len(audio)} files, {size}")
    if done.failed:
        raise typer.Exit(1)


def _check_out(out: Path, audio: Sequence[str]) -> None:
    """Whether the name of the output says what it will be, and is no input."""
    if str(out) == "-":
        raise typer.BadParameter("an npz file cannot be written to stdout (-); name a file", param_hint="--out")
    for name in audio:
        with suppress(OSError):  # one of them does not exist, so they are not the same
            if name != "-" and out.samefile(name):
                raise typer.BadParameter(f"{out} is one of the audio files; name another", param_hint="--out")
    if out.suffix.lower() != ".npz" and not out.is_dir():
        raise typer.BadParameter(f"{out} will be an npz file; name it {out}.npz", param_hint="--out")
