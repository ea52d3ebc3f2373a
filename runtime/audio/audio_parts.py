"""The opened graphs of a bundle that take audio: they are opened here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.bundle import ENCODER, FRONT_END, PROJECTOR, Bundle, weights_file
from dasheng_edge.runtime.engine_options import EngineOptions, resolve_here
from dasheng_edge.runtime.errors import BundleFileError
from dasheng_edge.runtime.machine.turns import Turns

from .encoder import Encoder, Feed, Patches, Projector, chunk_feeds
from .front_end import Features, FrontEnd
from .read import Waveform


@dataclass(frozen=True)
class AudioParts:
    """Front end and encoder, which every bundle has: waveform -> log-mel -> patches."""

    front_end: FrontEnd
    encoder: Encoder

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions, turns: Turns | None = None) -> AudioParts:
        """Open both, the encoder on its device; the front end always computes on the CPU.

        With `turns`, the encoder is there in its turn only.

        Raises:
            BundleFileError: a graph is not one of this bundle, or cannot be loaded.
            DashengEdgeError: what else `onnx_session` raises.
        """
        spec, settings = bundle.manifest.front_end, resolve_here(options)
        device, threads = settings.device, settings.encoder_threads
        _check_listed(bundle)
        front_end = FrontEnd(spec, threads=threads)
        path = bundle.graph(ENCODER, device)
        encoder = Encoder(
            path, spec, device=device, threads=threads, allow_tf32=settings.allow_tf32, packed=settings.packed,
            turns=turns,
        )  # fmt: skip
        _check_width(path, "patches", encoder.width, "encoder.embed_dim", bundle.manifest.encoder.embed_dim)
        return cls(front_end, encoder)


@dataclass(frozen=True)
class AudioInputParts(AudioParts):
    """Front end, encoder and projector of a bundle that captions: waveform -> embeddings for the decoder."""

    projector: Projector

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions, turns: Turns | None = None) -> AudioInputParts:
        """Open all three on one device; with `turns`, those with weights are there in their turn only.

        Raises what `AudioParts.open` raises.
        """
        settings = resolve_here(options)
        audio, device = AudioParts.open(bundle, settings, turns), settings.device
        path, spec, threads = bundle.graph(PROJECTOR, device), bundle.manifest.front_end, settings.encoder_threads
        projector = Projector(
            path, spec, device=device, threads=threads, allow_tf32=settings.allow_tf32, packed=settings.packed,
            turns=turns,
        )  # fmt: skip
        _check_width(path, "what it takes", projector.audio_width, "encoder.embed_dim", audio.encoder.width)
        _check_width(path, "embeddings", projector.width, "decoder.hidden_size", bundle.decoder_facts.hidden_size)
        return cls(audio.front_end, audio.encoder, projector)

    def embeddings(self, blocks: Iterable[Waveform]) -> NDArray[np.float32]:
        """Waveform blocks float32 [n] of one clip -> one row per audio token, float32 [tokens, llm_dim]."""
        return self.projector.embeddings(self.encoder.patches(self.front_end.features(blocks)))

    def warm_up(self) -> None:
        """Run encoder and projector at each of their shapes, the largest first.

        Raises what `embeddings` raises.
        """
        spec = self.encoder.spec
        for chunks, frames in self.encoder.shapes:
            acoustic = np.zeros((spec.acoustic.n_mels, frames), np.float32) if spec.acoustic else None
            silence = Features(np.zeros((spec.n_mels, frames), np.float32), acoustic, frames * spec.hop_length)
            self.encoder.together([*chunk_feeds(spec, silence)] * chunks)
        for patches in self.projector.sizes:
            self.projector.embeddings(np.zeros((patches, self.projector.audio_width), np.float32))

    def embedding_groups(self, blocks: Iterable[Waveform]) -> Iterator[NDArray[np.float32]]:
        """As `embeddings`, but a few chunks at a time, so that memory does not grow with the clip."""
        chunks = self.front_end.chunks(blocks)
        feeds = (feed for features, first in chunks for feed in chunk_feeds(self.encoder.spec, features, first))
        return map(self.projector.embeddings, self.groups(feeds))

    def groups(self, feeds: Iterable[Feed], *, live: bool = False) -> Iterator[Patches]:
        """What `chunk_feeds` makes of the chunks of a clip -> its patches, cut where an audio token ends.

        `live`: each chunk is encoded as soon as it comes.
        """
        feeds, most = iter(feeds), self.encoder.max_chunks
        if self.encoder.stays and not live:
            some = list(islice(feeds, most + 1))
            if len(some) <= most:
                yield from self.encoder.clips([some])
                return
            feeds = chain(some, feeds)
        yield from self.projector.groups(self.encoder.stream(feeds, 1 if live else most))


def _check_listed(bundle: Bundle) -> None:
    """ONNX Runtime opens the weights beside a graph by itself, so they must be among the files that were checked."""
    for name in (FRONT_END, ENCODER, PROJECTOR):
        beside = weights_file(bundle.path(name))
        if beside.name not in bundle.manifest.files and beside.exists():
            raise BundleFileError(
                f"{beside} is not listed in the manifest of its bundle; remove it, or copy the bundle again"
            )


def _check_width(path: Path, what: str, got: int, field: str, stated: int) -> None:
    if got != stated:
        raise BundleFileError(f"{path}: {what} is {got} wide, expected {stated}, the manifest's {field}; export again")
