"""Many audio files -> one npz file: a file that fails is left out, and the others are embedded."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dasheng_edge.runtime.embedder import Embedder
from dasheng_edge.runtime.errors import AudioError, DeviceError

from .embeddings_file import EmbeddingsWriter


@dataclass(frozen=True)
class EmbeddedFile:
    """What became of an audio file; `error` says why it is not in the npz file."""

    name: str
    index: int = 0  # its row in the npz file
    frames: int = 0
    audio_s: float = 0.0
    error: AudioError | DeviceError | None = None


def embed_files(embedder: Embedder, writer: EmbeddingsWriter, names: Sequence[str]) -> Iterator[EmbeddedFile]:
    """Embed files (- is stdin) and write each as it is yielded; the npz file is finished behind the last, if any."""
    for name in names:
        try:
            embedding = embedder.embed(sys.stdin.buffer if name == "-" else name)
        except (AudioError, DeviceError) as error:
            yield EmbeddedFile(name, error=error)
            continue
        index = len(writer)
        writer.add(name, embedding)
        yield EmbeddedFile(name, index, len(embedding.frames), embedding.audio_s)
    if len(writer):
        writer.finish(rate_hz=embedder.rate_hz, model=embedder.bundle.manifest.name)
