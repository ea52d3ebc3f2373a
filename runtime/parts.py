"""The opened sessions of a bundle that captions."""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from dasheng_edge.runtime.audio.encoder import Projector
from dasheng_edge.runtime.bundle.bundle import DECODER, PROJECTOR, Bundle, DecoderFacts
from dasheng_edge.runtime.machine.devices import Device, checked_device, checked_threads, release_freed_memory
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.text.huge_pages import huge_pages_on_request
from dasheng_edge.runtime.text.prompt import PromptBuilder

from .embedder import AudioParts
from .tuned import Choice

FLOAT_TYPES = ("F32", "F16", "BF16")  # that llama.cpp computes with as they are in the file
# Types whose weights llama.cpp copies into layouts of its own on x86-64; it has none for others there. On Zen with
# AVX-512 (0.6B, 300 rows / one token, tok/s): Q4_0 502 / 55 with and 248 / 45 without, IQ4_NL the same; Q4_K_M 452 / 54
# and 597 / 46, Q2_K alike: a caption of ten seconds is done earlier with, one of a minute without. `tune` measures it.
REPACKED_X86 = ("Q4_0", "IQ4_NL", "Q4_K_M", "Q4_K_S", "Q2_K")


@dataclass(frozen=True)
class Parts:
    """The opened sessions of a bundle."""

    audio: AudioParts
    projector: Projector
    decoder: Decoder
    prompts: PromptBuilder

    @classmethod
    def open(
        cls, bundle: Bundle, *, device: Device, threads: int | None, choice: Choice | None = None, few: bool = False
    ) -> Parts:
        """Open all parts on one device; `choice` is what was tuned, instead of threads and the bundle's KV type.

        For `few` see `Captioner.open`.

        Raises `BundleKindError` where the bundle has no decoder, and what `onnx_session`, `Decoder.open` and
        `PromptBuilder` raise.
        """
        device, threads, (stored, facts) = checked_device(device), checked_threads(threads), bundle.text_facts()
        if choice is None:
            choice = default_choice(stored, threads)
        if few:
            choice = choice.model_copy(update={"repack": False, "huge_pages": False})
        spec, threads = bundle.manifest.front_end, choice.encoder_threads
        with ThreadPoolExecutor(1) as pool:  # the engines load side by side
            opening = pool.submit(AudioParts.open, bundle, device=device, threads=threads)
            try:
                decoder = open_decoder(bundle, choice, device=device)
            except BaseException:
                opening.result()  # whose error, if there is one, is the first
                raise
        try:
            audio = opening.result()
            projector = Projector(bundle.graph(PROJECTOR, device), spec, device=device, threads=threads)
            prompts = PromptBuilder(decoder.chat_template, facts, decoder)
        except BaseException:
            decoder.close()
            raise
        release_freed_memory()
        return cls(audio, projector, decoder, prompts)


def default_choice(decoder: DecoderFacts, threads: int) -> Choice:
    """What is taken where nothing was tuned."""
    kind, x86 = decoder.precision, platform.machine().lower() in ("x86_64", "amd64")
    repack = kind in REPACKED_X86 if x86 else kind not in FLOAT_TYPES
    return Choice(
        encoder_threads=threads, prefill_threads=threads, decode_threads=threads, kv_type=decoder.kv_type,
        repack=repack, huge_pages=repack and huge_pages_on_request(),
    )  # fmt: skip


def open_decoder(bundle: Bundle, choice: Choice, *, device: Device = "cpu") -> Decoder:
    """The decoder of a bundle.

    Raises what `Decoder.open` raises.
    """
    return Decoder.open(
        bundle.path(DECODER), n_threads=choice.decode_threads, n_threads_batch=choice.prefill_threads, device=device,
        kv_type=choice.kv_type, repack=choice.repack, huge_pages=choice.huge_pages,
    )  # fmt: skip
