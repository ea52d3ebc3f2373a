"""The opened sessions of a bundle that captions, and the device that all of them can run on."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.audio.encoder import CHUNKS
from dasheng_edge.runtime.audio.onnx_session import why_not_cuda
from dasheng_edge.runtime.bundle.bundle import DECODER, ENCODER, PROJECTOR, Bundle, weights_file
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.engine_options import EngineOptions, EngineSettings, resolve_here
from dasheng_edge.runtime.errors import MemoryShortError
from dasheng_edge.runtime.gguf.check import Sizes
from dasheng_edge.runtime.gguf.header import Header, read_header
from dasheng_edge.runtime.machine.devices import ON_CPU, Placement
from dasheng_edge.runtime.machine.gpu import find_gpus
from dasheng_edge.runtime.machine.memory import release_freed_memory, release_read_pages, require, room_bytes
from dasheng_edge.runtime.machine.placing import Card, Needs, placed, refusal
from dasheng_edge.runtime.machine.turns import Turns
from dasheng_edge.runtime.planning.memory import MAPPED, Use, account
from dasheng_edge.runtime.planning.recipes import LOW_WAY, fitting
from dasheng_edge.runtime.planning.shape import ModelShape
from dasheng_edge.runtime.program import check_program
from dasheng_edge.runtime.prompt.prompt import PromptBuilder
from dasheng_edge.runtime.text.answer import Answer
from dasheng_edge.runtime.text.apart_decoder import ApartDecoder
from dasheng_edge.runtime.text.context import BATCH, KV_TYPES
from dasheng_edge.runtime.text.context_memory import KV_BITS, computed_bytes, kept_bytes
from dasheng_edge.runtime.text.decoder import FIRST_CONTEXT, Decoder, Embeddings
from dasheng_edge.runtime.text.llama import why_no_gpu
from dasheng_edge.runtime.text.sequences import Sequences

_LIBRARIES_BYTES = 160 << 20  # of addresses: both engines, started side by side, with a heap for the second thread
# What a decoder on a GPU is run with when it opens, the longest first, so that memory is taken once. Kernels of
# llama.cpp differ between few rows (each number to 8), some (to 64) and many, of which the first context holds 512.
_WARM_ROWS = (510, 256, 128, 64, 32, 16, 8, 2)
_WARM_ANSWERS, _WARM_PROMPT = 8, 60  # at once, and rows of each
_SURE = 0.95  # of the account


@dataclass(frozen=True)
class TextParts:
    """The decoder, and the builder of its prompts."""

    decoder: Decoder
    prompts: PromptBuilder

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions, turns: Turns | None = None) -> TextParts:
        """Open the decoder; its weights are there in their turn only where memory is low.

        Raises `BundleKindError` where the bundle has none, and what `Decoder.open`, `PromptBuilder` and
        `check_program` raise.
        """
        stored, facts = bundle.decoder_facts, bundle.prompt_facts
        path, settings = bundle.path(DECODER), resolve_here(options, stored)
        if settings.memory == "low":
            decoder: Decoder = ApartDecoder(path, settings, stored, turns or Turns())
        else:
            decoder = Decoder.open(path, settings, facts=stored)
        try:
            prompts = PromptBuilder(decoder.chat_template, facts, decoder)
            check_program(bundle, decoder, prompts)
            return cls(decoder, prompts)
        except BaseException:
            decoder.close()
            raise


@dataclass(frozen=True)
class Parts(TextParts):
    """All sessions of a bundle."""

    audio: AudioInputParts
    turns: Turns | None = None
    memory_note: str = ""  # what is to be said of memory: see `check_memory`

    @classmethod
    def open(cls, bundle: Bundle, options: EngineOptions, turns: Turns | None = None) -> Parts:
        """Open all parts on one device; where memory is low, those with weights are there in their turn only.

        Raises what `TextParts.open` and `AudioInputParts.open` raise, MemoryShortError among it.
        """
        settings = resolve_here(options, bundle.decoder_facts)
        settings = on_card(bundle, settings)
        note = check_memory(bundle, settings) if settings.device == settings.text_device == "cpu" else ""
        if settings.memory == "low":
            return cls._apart(bundle, settings, turns or Turns(), note)
        with ThreadPoolExecutor(1) as pool:  # the engines load side by side
            opening = pool.submit(_opened_audio, bundle, settings)
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
        release_read_pages()
        return cls(text.decoder, text.prompts, audio, memory_note=note)

    @classmethod
    def _apart(cls, bundle: Bundle, settings: EngineSettings, turns: Turns, note: str) -> Parts:
        """As `open`, but of parts of which one at a time has its weights in memory."""
        text = TextParts.open(bundle, settings, turns)
        try:
            audio = AudioInputParts.open(bundle, settings, turns)
        except BaseException:
            text.decoder.close()
            raise
        release_freed_memory()
        release_read_pages()
        return cls(text.decoder, text.prompts, audio, turns, note)

    def make_way(self) -> None:
        """Audio is to be heard: where parts take turns, the decoder's weights go before the audio is read.

        Raises:
            CaptionerBusyError: other answers are in the making.
        """
        if self.turns is not None:
            self.turns.take("audio")

    def warm_up(self, alone: Sequences | None = None) -> None:
        """Run each part that is on a GPU at sizes that requests have, alone and together: `EngineOptions.warm_up`.

        `alone` are the sequences of single requests, whose context is there from then on.

        Raises what a request raises.
        """
        settings = self.decoder.settings
        if settings.warm_up and settings.device != "cpu":
            self.audio.warm_up()
        if settings.warm_up and settings.text_device != "cpu":
            with nullcontext(alone) if alone is not None else closing(Sequences(self.decoder, 1)) as sequences:
                for rows in _WARM_ROWS:
                    answer = Answer([self._silence(min(rows, self.decoder.context_length - 2))], 2, Sampling())
                    sequences.begin([answer])
                    for _ in sequences.tokens(answer):
                        pass
            self._answer_together()

    def _answer_together(self) -> None:
        """Several answers that end one after another, so that steps of each width are taken."""
        most = min(self.decoder.settings.batch, _WARM_ANSWERS)
        with closing(Sequences(self.decoder, most)) as sequences:
            prompt = self._silence(_WARM_PROMPT)
            sequences.begin([Answer([prompt], count, Sampling()) for count in range(2, 2 + most)])
            while len(sequences):
                sequences.step()

    def _silence(self, rows: int) -> Embeddings:
        return np.zeros((rows, self.decoder.n_embd), np.float32)


def _opened_audio(bundle: Bundle, settings: EngineSettings) -> AudioInputParts:
    """What was read to open it does not wait in memory for the decoder."""
    audio = AudioInputParts.open(bundle, settings)
    release_freed_memory()
    return audio


def check_memory(bundle: Bundle, settings: EngineSettings, *, text: bool = True) -> str:
    """Refuse what does not fit as a whole: the engines ask each for itself, and load side by side.

    Asked for is what the shortest clip takes; and a little less, as far as the account errs. `text`: with the decoder.
    Returns what is to be said where it does fit, but only if its files are read again and again; "" elsewhere.

    Raises:
        MemoryShortError: it does not fit; low memory or the recipe is named that would.
    """

    def shape(*, types: bool) -> ModelShape:
        whole = ModelShape.of(bundle, types=types)
        return whole if text else replace(whole, decoder=None)

    low = settings.memory == "low"
    use = Use(clip_s=1.0, tokens=1, kv_type=settings.kv_type, low=low, packed=settings.packed)
    needed = account(shape(types=False), use)
    copied = settings.huge_pages or settings.weights == "repacked"
    what, taken, own = f"the bundle {bundle.folder}", needed.taken(), int(_SURE * needed.taken(MAPPED[copied:]))
    mapped = taken - own + (0 if "onnxruntime" in sys.modules else _LIBRARIES_BYTES)
    ways = [way for way in (LOW_WAY, 'weights="mapped"') if not low and (copied or way == LOW_WAY)]
    try:
        require(what, ", ".join(["free memory", *ways, "or quantize to a smaller recipe"]), own=own, mapped=mapped)
    except MemoryShortError:
        if (room := room_bytes()) is not None and (fits := fitting(shape(types=True), room, use)):
            require(what, fits, own=own, mapped=mapped)
        raise
    room = room_bytes()
    if room is None or taken <= room:
        return ""
    fits = fitting(shape(types=True), room, use) or "free memory"
    return (
        f"{what} takes about {taken / 1e6:,.0f} MB, {room / 1e6:,.0f} MB are left, so that its files are read "
        f"again for each token: {fits}"
    )


def needs_of(bundle: Bundle, settings: EngineSettings) -> Needs:
    """What the parts take of a card, with one answer in the first context.

    Raises:
        GgufError: the decoder cannot be read.
    """
    encoder, spec, names = bundle.manifest.encoder, bundle.manifest.front_end, (ENCODER, PROJECTOR)
    files = [bundle.graph(name, "cuda") for name in names] + [weights_file(bundle.path(name)) for name in names]
    # Of a chunk: 12 rows of a patch's width live at once, such as those of a block's inner layer, and its scores twice.
    patches = spec.chunk_patches
    values = 4 * patches * (12 * encoder.embed_dim + 2 * encoder.num_heads * patches)
    needs = Needs(sum(map(_size, files)), CHUNKS["cuda"] * values, 0, 0, 0, FIRST_CONTEXT)
    if (facts := bundle.manifest.decoder) is None:
        return needs
    header = read_header(bundle.path(DECODER))
    sizes = Sizes.stated(header, header.text("general.architecture"))
    exact = settings.exact if settings.exact is not None else facts.precision == "F32" and settings.kv_type == "f16"
    kept = kept_bytes(sizes, FIRST_CONTEXT, KV_BITS[0] if exact else KV_BITS[KV_TYPES[settings.kv_type]])
    return replace(
        needs,
        decoder=_weightson_card(header),
        decoded=computed_bytes(sizes, BATCH, FIRST_CONTEXT, flash_attention=not exact),
        answer=kept + 4 * facts.vocab_size,
    )


def _weightson_card(header: Header) -> int:
    """Bytes of the tensors that llama.cpp puts there: all but the embeddings, unless they are the output's, too."""
    whole = header.size - header.data
    embeddings = header.tensors.get("token_embd.weight")
    if embeddings is None or "output.weight" not in header.tensors:
        return whole
    behind = [tensor.offset for tensor in header.tensors.values() if tensor.offset > embeddings.offset]
    return whole - (min(behind, default=whole) - embeddings.offset)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def on_card(bundle: Bundle, settings: EngineSettings) -> EngineSettings:
    """The settings, with no more answers at once than the card has room for.

    Raises:
        MemoryShortError: the parts do not fit into what is free there, as far as the driver tells.
    """
    place = Placement(settings.device, settings.text_device)
    if place == ON_CPU or (card := Card.first(find_gpus())) is None:  # engines say why there is none
        return settings
    needs = needs_of(bundle, settings)
    if why := refusal(needs, place, card):
        raise MemoryShortError(f"the bundle {bundle.folder} needs about {why}")
    room = card.answers(needs, place)
    return settings if room is None else replace(settings, batch=min(settings.batch, room))


def choose_placement(folder: str | Path, options: EngineOptions) -> tuple[Placement, str]:
    """Where the parts of a bundle are best, for "auto", and why: all on the GPU, else what fits there and gains most.

    What fails later on the device that was chosen is an error like on one that was asked for.

    Raises what `Bundle.open` and `needs_of` raise.
    """
    if options.memory == "low":
        return ON_CPU, "parts take turns there, as memory is to be low"
    bundle = Bundle.open(folder, check_sha256=False)
    facts, card = bundle.manifest.decoder, Card.first(find_gpus())
    whys = [why_not_cuda(), why_no_gpu() if facts else ""]
    why_not = "; ".join(dict.fromkeys(filter(None, whys)))
    if card is None or all(whys) or (whys[0] and not facts):
        return ON_CPU, whys[0] or why_not
    can = Placement("cpu" if whys[0] else "cuda", "cpu" if whys[1] else "cuda")
    return placed(needs_of(bundle, resolve_here(options, facts)), card, can, why_not)
