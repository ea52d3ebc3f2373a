"""The one account of what a bundle takes of the machine's memory: when it opens, and when it captions.

Fitted on micro and on the 0.6B in int8 and Q4_K_M, 10 s and 40 tokens; `benchmarks.planning.check` holds it against
others. Peaks are of resident memory, mapped pages of files included.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from dasheng_edge.runtime.bundle.manifest import KvType
from dasheng_edge.runtime.text.context import BATCH, LOW_MEMORY_ROWS
from dasheng_edge.runtime.text.context_memory import KV_BITS, kept_bytes

from .shape import ModelShape

KV_KINDS: Mapping[KvType, int] = {"f16": 1, "q8_0": 8, "q4_0": 2}  # enum ggml_type
PROCESS_BYTES = 124_000_000  # Python and both engines, just loaded: where nobody has measured it
_PROCESS, _DECODER, _BESIDE = "process", "decoder", "encoder's weights"
MAPPED = (_DECODER, _BESIDE)  # of files, unless the decoder's are copied
# Of these, pages of libraries that go back once engines are open or take turns, and what hearing reads of them again.
_RELEASED, _READ_AGAIN = 44_000_000, 17_000_000
# A graph is read as a message, and its weights leave that one by one; copies in an order that is faster are there
# beside it until all are made. Of a graph's bytes, while it opens:
_OPENED, _OPENED_PACKED = 1.2, 1.65
# llama.cpp's and our tables for each token, 45 MB for 151,936; and what is left of them where memory is low.
_TOKEN_BYTES, _LOW_TOKEN_BYTES = 295, 115
_CLIP_BYTES, _CLIP_S_BYTES = 2_500_000, 200_000  # of reading audio, and for each second of it
_THREADS_FACTOR = 1.7  # of what is computed, with two threads or more, which free into heaps of their own
CONTEXT_STEP = 256


@dataclass(frozen=True)
class Account:
    """Bytes at the peaks of what follows one another, by what they are for."""

    phases: Mapping[str, Mapping[str, int]]

    @property
    def parts(self) -> Mapping[str, int]:
        """Of the phase that takes most."""
        return max(self.phases.values(), key=lambda parts: sum(parts.values()))

    @property
    def peak(self) -> int:
        """What that takes."""
        return sum(self.parts.values())

    def taken(self, without: Collection[str] = ()) -> int:
        """The most that a phase takes beside what is there before a bundle is opened, without some parts."""
        beside = (_PROCESS, *without)
        return max(sum(size for what, size in parts.items() if what not in beside) for parts in self.phases.values())


@dataclass(frozen=True)
class Use:
    """How a bundle is used: one answer at a time."""

    clip_s: float = 10.0
    tokens: int = 40
    threads: int = 1
    kv_type: KvType | None = None  # None: the bundle's; Q8_0 where memory is low and that is F16
    low: bool = False  # `EngineOptions.memory`: encoder and decoder take turns in memory
    packed: bool = False  # `EngineOptions.packed`

    @property
    def with_low_memory(self) -> Use:
        """The same with as little memory as there is to be had."""
        return replace(self, low=True, packed=False)


def account(shape: ModelShape, use: Use, process_bytes: int = PROCESS_BYTES) -> Account:
    """What captioning takes, weights of the decoder as they are in their file or copied, which is as much."""
    graphs, beside = shape.graph_bytes + shape.front_end_bytes, {_BESIDE: shape.beside_bytes}
    factor = _OPENED_PACKED if use.packed else _OPENED
    opened = {"encoder, while it is read": graphs + int((factor - 1) * shape.graph_bytes)} | beside
    heard = {"encoder": graphs, "its values": values_bytes(shape, use)} | beside
    clip = {"the clip": _CLIP_BYTES + int(_CLIP_S_BYTES * use.clip_s)}
    loaded, released = {_PROCESS: process_bytes}, {_PROCESS: process_bytes - _RELEASED}
    reading = {_PROCESS: process_bytes - _RELEASED + _READ_AGAIN}
    if shape.decoder is None:
        return Account({"opening": loaded | opened, "hearing": loaded | clip | heard})
    tokens = shape.decoder.sizes.tokens
    decoder, vocabulary = {_DECODER: shape.decoder.bytes}, {"vocabulary": _TOKEN_BYTES * tokens}
    context = {"keys and values": _kept(shape, use), "decoder's values": _decoded_bytes(shape, use)}
    if use.low:
        return Account({
            "opening": loaded | opened | vocabulary,
            "hearing": reading | clip | heard | vocabulary,
            "answering": released | clip | decoder | context | {"vocabulary": _LOW_TOKEN_BYTES * tokens},
        })  # fmt: skip
    return Account({
        "opening": loaded | opened | decoder | vocabulary,
        "captioning": reading | clip | heard | decoder | vocabulary | context,
    })  # fmt: skip


def values_bytes(shape: ModelShape, use: Use) -> int:
    """What a chunk's encoding computes: 12 rows of a patch's width at once, and its scores twice."""
    patches, encoder = max(shape.chunks(use.clip_s)), shape.encoder
    values = 4 * patches * (12 * encoder.embed_dim + 2 * encoder.num_heads * patches)
    return int(values * (_THREADS_FACTOR if use.threads > 1 else 1.0))


def positions(shape: ModelShape, use: Use) -> int:
    """Of the context that an answer is made in."""
    assert shape.decoder is not None
    rows = shape.audio_rows(use.clip_s) + 2 * shape.decoder.text_rows + use.tokens
    return -(-rows // CONTEXT_STEP) * CONTEXT_STEP


def _kept(shape: ModelShape, use: Use) -> int:
    """Keys and values of an answer."""
    assert shape.decoder is not None
    kind = use.kv_type or shape.decoder.kv_type
    if use.low and not use.kv_type and kind == "f16":
        kind = "q8_0"  # as `engine_options.resolve`
    exact = kind == "f16" and shape.decoder.precision == "F32"  # as `text.context` does it
    bits = 32.0 if exact else KV_BITS[KV_KINDS[kind]]
    return kept_bytes(shape.decoder.sizes, positions(shape, use), bits)


def _decoded_bytes(shape: ModelShape, use: Use) -> int:
    """What the rows of a prompt compute, of which one makes logits."""
    assert shape.decoder is not None
    sizes, most = shape.decoder.sizes, LOW_MEMORY_ROWS if use.low else BATCH
    rows = min(most, shape.audio_rows(use.clip_s) + shape.decoder.text_rows)
    return 4 * (rows * (4 * sizes.width + 3 * sizes.inner) + 2 * sizes.tokens)
