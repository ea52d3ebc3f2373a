"""The opened sessions of a bundle that captions, and the device that all of them can run on."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.audio.onnx_session import why_not_cuda
from dasheng_edge.runtime.bundle.bundle import DECODER, ENCODER, FRONT_END, PROJECTOR, Bundle, weights_file
from dasheng_edge.runtime.engine_options import EngineOptions, EngineSettings, resolve_here
from dasheng_edge.runtime.errors import MemoryShortError
from dasheng_edge.runtime.machine.devices import Device
from dasheng_edge.runtime.machine.gpu import find_gpus
from dasheng_edge.runtime.machine.memory import release_freed_memory, require
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.text.llama import why_no_gpu
from dasheng_edge.runtime.text.prompt import PromptBuilder

_LIBRARIES_BYTES = 160 << 20  # of addresses: both engines, started side by side, with a heap for the second thread
# What parts on a GPU are run with when they open: the longest first, so that memory is taken once. A chunk has 10 s;
# kernels of llama.cpp differ between few rows (to 8), some (to 64) and many, of which the first context holds 512.
_WARM_AUDIO_S = (20.0, 5.0, 2.0)
_WARM_ROWS = (510, 256, 128, 64, 32, 16, 8, 2)
# What a card takes beside the weights: CUDA itself, activations, keys and values. 0.7 to 1.4 GiB were seen with the 7B.
_GPU_BYTES = 512 << 20
_LOADED = (DECODER, FRONT_END, ENCODER, PROJECTOR)


@dataclass(frozen=True)
class TextParts:
    """The decoder, and the builder of its prompts."""

    decoder: Decoder
    prompts: PromptBuilder

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> TextParts:
        """Open the decoder.

        Raises `BundleKindError` where the bundle has none, and what `Decoder.open` and `PromptBuilder` raise.
        """
        stored, facts = bundle.decoder_facts, bundle.prompt_facts
        decoder = Decoder.open(bundle.path(DECODER), resolve_here(options, stored), facts=stored)
        try:
            return cls(decoder, PromptBuilder(decoder.chat_template, facts, decoder))
        except BaseException:
            decoder.close()
            raise


@dataclass(frozen=True)
class Parts(TextParts):
    """All sessions of a bundle."""

    audio: AudioInputParts

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions) -> Parts:
        """Open all parts on one device.

        Raises what `TextParts.open` and `AudioInputParts.open` raise, MemoryShortError among it.
        """
        settings = resolve_here(options, bundle.decoder_facts)
        if settings.device == settings.text_device == "cpu":
            _require(bundle, settings)
        else:
            _require_gpu(bundle, settings)
        with ThreadPoolExecutor(1) as pool:  # the engines load side by side
            opening = pool.submit(AudioInputParts.open, bundle, settings)
            try:
                text = TextParts.open(bundle, settings)
            except BaseException:
                opening.result()  # an error of the audio parts is raised in place of this one
                raise
        try:
            audio = opening.result()
        except BaseException:
            text.decoder.close()
            raise
        release_freed_memory()
        return cls(text.decoder, text.prompts, audio)

    def warm_up(self) -> None:
        """Run each part that is on a GPU at sizes that requests have: see `EngineOptions.warm_up`.

        Raises what a request raises.
        """
        settings, decoder = self.decoder.settings, self.decoder
        if not settings.warm_up:
            return
        if settings.device != "cpu":
            rate_hz = self.audio.front_end.spec.sample_rate_hz
            for seconds in _WARM_AUDIO_S:
                self.audio.embeddings([np.zeros(round(seconds * rate_hz), np.float32)])
        if settings.text_device != "cpu":
            for rows in _WARM_ROWS:
                prompt = np.zeros((min(rows, decoder.context_length - 2), decoder.n_embd), np.float32)
                decoder.prefill([prompt], reserve=2)
                for _ in decoder.generate(2):
                    pass


def _require(bundle: Bundle, settings: EngineSettings) -> None:
    """Refuse what does not fit as a whole: the engines ask each for itself, and load side by side."""
    sizes = [path.stat().st_size if path.is_file() else 0 for path in map(bundle.path, _LOADED)]
    decoder, graphs = sizes[0], sum(sizes[1:])
    started = "onnxruntime" in sys.modules
    copied = settings.huge_pages or settings.weights == "repacked"
    require(
        f"the bundle {bundle.folder}",
        'free memory, take `weights="mapped"`, or quantize to a smaller recipe',
        own=graphs + (decoder if copied else 0),
        mapped=graphs + (0 if copied else decoder) + (0 if started else _LIBRARIES_BYTES),
    )


def _require_gpu(bundle: Bundle, settings: EngineSettings) -> None:
    """Refuse what does not fit into the memory of the card that is free, where the driver tells how much that is."""
    graphs = [bundle.graph(name, settings.device) for name in (ENCODER, PROJECTOR)] if settings.device != "cpu" else []
    files = [*graphs, *map(weights_file, map(bundle.path, (ENCODER, PROJECTOR) if graphs else ()))]
    files += [bundle.path(DECODER)] if settings.text_device != "cpu" else []
    needed = sum(path.stat().st_size for path in files if path.is_file()) + _GPU_BYTES
    free = next((card.free_bytes for card in find_gpus().cards), None)
    if free is not None and needed > free:
        raise MemoryShortError(
            f"the bundle {bundle.folder} needs about {needed / 1e6:.0f} MB of the GPU's memory, {free / 1e6:.0f} MB "
            "are free: quantize to a smaller recipe, or leave a part to the CPU (--device encoder=cuda,decoder=cpu)"
        )


def choose_device() -> tuple[Device, str]:
    """The device for "auto", and why: cuda where both engines have a GPU that works, else cpu.

    What fails later on the device that was chosen is an error like on one that was asked for. Raises nothing.
    """
    if why_not := why_not_cuda() or why_no_gpu():
        return "cpu", why_not
    return "cuda", "ONNX Runtime computes on the GPU, and llama.cpp can offload to it"
