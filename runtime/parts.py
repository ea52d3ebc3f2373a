"""The opened sessions of a bundle that captions."""

from __future__ import annotations

from dataclasses import dataclass

from .bundle import DECODER, PROJECTOR, Bundle
from .decoder import Decoder
from .devices import Device, checked_device, checked_threads
from .embedder import AudioParts
from .encoder import Projector
from .prompt import PromptBuilder


FLOAT_TYPES = ("F32", "F16", "BF16")  # that llama.cpp computes with as they are in the file


@dataclass(frozen=True)
class Parts:
    """The opened sessions of a bundle."""

    audio: AudioParts
    projector: Projector
    decoder: Decoder
    prompts: PromptBuilder

    @classmethod
    def open(cls, bundle: Bundle, *, device: Device, threads: int | None) -> Parts:
        """Open all parts on one device.

        Raises `BundleKindError` where the bundle has no decoder, and what `onnx_session`, `Decoder.open` and
        `PromptBuilder` raise.
        """
        device, threads, (stored, facts) = checked_device(device), checked_threads(threads), bundle.text_facts()
        audio = AudioParts.open(bundle, device=device, threads=threads)
        spec = bundle.manifest.front_end
        projector = Projector(bundle.graph(PROJECTOR, device), spec, device=device, threads=threads)
        decoder = Decoder.open(
            bundle.path(DECODER), n_threads=threads, device=device, kv_type=stored.kv_type,
            repack=stored.precision not in FLOAT_TYPES,
        )  # fmt: skip
        prompts = PromptBuilder(decoder.chat_template, facts, decoder)
        return cls(audio, projector, decoder, prompts)
