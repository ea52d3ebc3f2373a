"""The opened graphs of a bundle that take audio: they are opened here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.bundle import ENCODER, FRONT_END, PROJECTOR, Bundle
from dasheng_edge.runtime.engine_options import EngineOptions, resolve_here

from .encoder import Encoder, Projector
from .front_end import FrontEnd
from .read import Waveform


@dataclass(frozen=True)
class AudioParts:
    """Front end and encoder, which every bundle has: waveform -> log-mel -> patches."""

    front_end: FrontEnd
    encoder: Encoder

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> AudioParts:
        """Open both on one device.

        Raises what `onnx_session` raises.
        """
        spec, settings = bundle.manifest.front_end, resolve_here(options)
        device, threads = settings.device, settings.encoder_threads
        front_end = FrontEnd(bundle.path(FRONT_END), spec, device=device, threads=threads)
        return cls(front_end, Encoder(bundle.graph(ENCODER, device), spec, device=device, threads=threads))


@dataclass(frozen=True)
class AudioInputParts(AudioParts):
    """Front end, encoder and projector of a bundle that captions: waveform -> embeddings for the decoder."""

    projector: Projector

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> AudioInputParts:
        """Open all three on one device.

        Raises what `onnx_session` raises.
        """
        settings = resolve_here(options)
        audio, device = AudioParts.open(bundle, settings), settings.device
        path, threads = bundle.graph(PROJECTOR, device), settings.encoder_threads
        projector = Projector(path, bundle.manifest.front_end, device=device, threads=threads)
        return cls(audio.front_end, audio.encoder, projector)

    def embeddings(self, blocks: Iterable[Waveform]) -> NDArray[np.float32]:
        """Waveform blocks float32 [n] of one clip -> one row per audio token, float32 [tokens, llm_dim]."""
        return self.projector.embeddings(self.encoder.patches(self.front_end.features(blocks)))

    def embedding_groups(self, blocks: Iterable[Waveform]) -> Iterator[NDArray[np.float32]]:
        """As `embeddings`, but chunk by chunk, so that memory does not grow with the clip."""
        chunks = self.front_end.chunks(blocks)
        patches = (part for features, first in chunks for part in self.encoder.chunks(features, first))
        return map(self.projector.embeddings, self.projector.groups(patches))
