"""Many audio files -> one npz file: a file that fails is left out, and the others are embedded."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dasheng_edge.runtime.embedder import Embedder
from dasheng_edge.runtime.errors import DashengEdgeError, clip_error

from .embeddings_file import EmbeddingsWriter


@dataclass(frozen=True)
class EmbeddedFile:
    """What became of an audio file; `error` says why it is not in the npz file."""

    name: str
    index: int = 0  # its row in the npz file
    frames: int = 0
    audio_s: float = 0.0
    warnings: tuple[str, ...] = ()
    error: DashengEdgeError | None = None


def embed_files(embedder: Embedder, writer: EmbeddingsWriter, names: Sequence[str]) -> Iterator[EmbeddedFile]:
    """Embed files (- is stdin) and write each as it is yielded; the npz file is finished behind the last, if any."""
    for name in names:
        try:
            result = _embedded(embedder, writer, name)
        except Exception as error:  # noqa: BLE001  # whatever a file does, the others go on
            result = EmbeddedFile(name, error=clip_error(name, error))
        yield result
    if len(writer):
        writer.finish(rate_hz=embedder.rate_hz, model=embedder.bundle.manifest.name)


def _embedded(embedder: Embedder, writer: EmbeddingsWriter, name: str) -> EmbeddedFile:
    index = len(writer)
    with writer.clip(name) as clip:
        heard = embedder.embed_to(sys.stdin.buffer if name == "-" else name, clip.add, clip.spool)
        clip.audio_s = heard.audio_s
    return EmbeddedFile(name, index, clip.frames, heard.audio_s, heard.warnings)
