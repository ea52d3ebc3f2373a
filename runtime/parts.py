"""The opened sessions of a bundle that captions."""

from __future__ import annotations

from dataclasses import dataclass

from .bundle import DECODER, PROJECTOR, Bundle
from .decoder import Decoder
from .devices import Device, checked_device, checked_threads
from .embedder import AudioParts
from .encoder import Projector
from .prompt import PromptBuilder
from .tuned import Choice

FLOAT_TYPES = ("F32", "F16", "BF16")  # that llama.cpp computes with as they are in the file


@dataclass(frozen=True)
class Parts:
    """The opened sessions of a bundle."""

    audio: AudioParts
    projector: Projector
    decoder: Decoder
    prompts: PromptBuilder

    @classmethod
    def open(cls, bundle: Bundle, *, device: Device, threads: int | None, choice: Choice | None = None) -> Parts:
        """Open all parts on one device; `choice` is what was tuned, instead of threads and the bundle's KV type.

        Raises `BundleKindError` where the bundle has no decoder, and what `onnx_session`, `Decoder.open` and
        `PromptBuilder` raise.
        """
        device, threads, (stored, facts) = checked_device(device), checked_threads(threads), bundle.text_facts()
        if choice is None:
            choice = Choice(
                encoder_threads=threads, prefill_threads=threads, decode_threads=threads, kv_type=stored.kv_type
            )
        audio = AudioParts.open(bundle, device=device, threads=choice.encoder_threads)
        spec, path = bundle.manifest.front_end, bundle.graph(PROJECTOR, device)
        projector = Projector(path, spec, device=device, threads=choice.encoder_threads)
        decoder = open_decoder(bundle, choice, device=device)
        prompts = PromptBuilder(decoder.chat_template, facts, decoder)
        return cls(audio, projector, decoder, prompts)


def open_decoder(bundle: Bundle, choice: Choice, *, device: Device = "cpu") -> Decoder:
    """The decoder of a bundle.

    Raises what `Decoder.open` raises.
    """
    stored, _ = bundle.text_facts()
    return Decoder.open(
        bundle.path(DECODER), n_threads=choice.decode_threads, n_threads_batch=choice.prefill_threads, device=device,
        kv_type=choice.kv_type, repack=stored.precision not in FLOAT_TYPES,
    )  # fmt: skip
