"""The one account of what a bundle takes of the machine's memory: when it opens, and when it captions.

Fitted on micro and on the 0.6B in int8 and Q4_K_M, 10 s and 40 tokens; `benchmarks.planning.check` holds it against
others. Peaks are of resident memory, mapped pages of files included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dasheng_edge.runtime.bundle.manifest import KvType
from dasheng_edge.runtime.text.context_memory import KV_BITS, kept_bytes

from .shape import ModelShape

KV_KINDS: Mapping[KvType, int] = {"f16": 1, "q8_0": 8, "q4_0": 2}  # enum ggml_type
PROCESS_BYTES = 128_000_000  # Python, both engines, a small model: where nobody has measured it
_PROCESS = "process"
_OPENING_BYTES = 14_000_000  # of these, what only captioning takes
# A graph is read whole, and its matrices are copied into layouts that are faster: both are there while it opens. In
# int8, llama.cpp's and ONNX Runtime's peaks were 1.9 to 2.15 times the file, in float32 1.7 to 1.8.
_OPENED, _OPENED_INT8, _KEPT = 1.75, 2.0, 0.98
_TOKEN_BYTES = 310  # of llama.cpp's and our tables for each token: 47 MB for 151,936
_CLIP_BYTES, _CLIP_S_BYTES = 2_500_000, 200_000  # of reading audio, and for each second of it
_THREADS_FACTOR = 1.9  # of what is computed, with two threads or more, which free into heaps of their own
CONTEXT_STEP = 256


@dataclass(frozen=True)
class Account:
    """Bytes at the peak while a bundle opens, and while it captions, by what they are for."""

    opening: Mapping[str, int]
    working: Mapping[str, int]

    @property
    def peak(self) -> int:
        """The larger of the two."""
        return max(sum(self.opening.values()), sum(self.working.values()))

    @property
    def taken(self) -> int:
        """Of the peak, what is not there before a bundle is opened."""
        return sum(size for what, size in self.parts.items() if what != _PROCESS)

    @property
    def parts(self) -> Mapping[str, int]:
        """Of the peak."""
        return max(self.opening, self.working, key=lambda parts: sum(parts.values()))


@dataclass(frozen=True)
class Use:
    """How a bundle is used: one answer at a time."""

    clip_s: float = 10.0
    tokens: int = 40
    threads: int = 1
    kv_type: KvType | None = None  # None: the bundle's
    low: bool = False  # whether encoder and decoder are never in memory together


def account(shape: ModelShape, use: Use, process_bytes: int = PROCESS_BYTES) -> Account:
    """What captioning takes, weights of the decoder as they are in their file or copied, which is as much."""
    graphs = shape.graph_bytes + shape.beside_bytes + shape.front_end_bytes
    opened = _OPENED_INT8 if shape.encoder.precision == "int8" else _OPENED
    heard = {"encoder": int(_KEPT * graphs), "its values": values_bytes(shape, use)}
    base = {_PROCESS: process_bytes - _OPENING_BYTES}
    working = {_PROCESS: process_bytes, "the clip": _CLIP_BYTES + int(_CLIP_S_BYTES * use.clip_s)}
    opening = {"encoder, while it is read": int(opened * shape.graph_bytes + shape.beside_bytes)}
    if shape.decoder is None:
        return Account(base | opening, working | heard)
    text = {"decoder": shape.decoder.bytes, "vocabulary": _TOKEN_BYTES * shape.decoder.sizes.tokens}
    context = {"keys and values": _kept(shape, use), "decoder's values": _decoded_bytes(shape, use)}
    if use.low:
        return Account(base | opening, max(working | heard, working | text | context, key=lambda p: sum(p.values())))
    return Account(base | opening | text, working | heard | text | context)


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
    exact = kind == "f16" and shape.decoder.precision == "F32"  # as `text.context` does it
    bits = 32.0 if exact else KV_BITS[KV_KINDS[kind]]
    return kept_bytes(shape.decoder.sizes, positions(shape, use), bits)


def _decoded_bytes(shape: ModelShape, use: Use) -> int:
    """What the rows of a prompt compute, of which one makes logits."""
    assert shape.decoder is not None
    sizes, rows = shape.decoder.sizes, min(512, shape.audio_rows(use.clip_s) + shape.decoder.text_rows)
    return 4 * (rows * (4 * sizes.width + 3 * sizes.inner) + 2 * sizes.tokens)
