"""How long a bundle takes on a machine: operations and bytes, over the rates that the machine reaches."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dasheng_edge.runtime.gguf.check import Sizes

from .board import Board, Rates
from .memory import Account, Use, account
from .shape import DecoderShape, ModelShape

# What Python does around a chunk, a prefill and an answer, by what it does around a token: 0.7 ms where that is 0.07.
_CALLS = 10
FRAMES_PER_S = 100  # of spectrograms
# The front end's products are as many as its matrices have numbers, for each frame; they are narrow, and reach less.
_NARROW = 0.25


@dataclass(frozen=True)
class Times:
    """Seconds."""

    load_s: float  # until the first clip can be heard, with files that are not in memory yet
    front_end_s: float
    encoder_s: float
    prefill_s: float
    token_s: float  # each
    decode_s: float
    turn_s: float = 0.0  # of opening the encoder again, where memory is low

    @property
    def caption_s(self) -> float:
        """Of a clip, once the bundle is open and its prompt was seen."""
        return self.turn_s + self.front_end_s + self.encoder_s + self.prefill_s + self.decode_s


@dataclass(frozen=True)
class Prediction:
    """What is expected of a bundle on a machine."""

    shape: ModelShape
    use: Use
    account: Account
    times: Times
    prefill_rows: int
    memory_bytes: int  # that there is
    watts: float | None
    low: Prediction | None = None  # the same with low memory, unless this is that

    @property
    def fits(self) -> bool:
        """Whether there is memory for it."""
        return self.account.peak <= self.memory_bytes

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for each second of audio."""
        return self.times.caption_s / self.use.clip_s

    @property
    def joules(self) -> float | None:
        """Of a clip; None where nobody knows."""
        return None if self.watts is None else self.watts * self.times.caption_s


def predict(shape: ModelShape, board: Board, use: Use, threads: int | None = None) -> Prediction:
    """What a bundle takes of a board; as many threads as it is rated for, unless told."""
    rates = board.rated(threads)
    rows = (shape.audio_rows(use.clip_s) + shape.decoder.text_rows) if shape.decoder else 0
    behind = rows + use.tokens // 2
    token_s = _token_s(shape.decoder, rates, behind) if shape.decoder else 0.0
    call_s = _CALLS * rates.token_us * 1e-6
    times = Times(
        load_s=load_s(shape, board),
        front_end_s=_front_end_s(shape, rates, use.clip_s) + call_s,
        encoder_s=sum(_chunk_s(shape, rates, patches) + call_s for patches in shape.chunks(use.clip_s)),
        prefill_s=_prefill_s(shape.decoder, rates, rows) + call_s if shape.decoder else 0.0,
        token_s=token_s,
        decode_s=max(0, use.tokens - 1) * token_s + call_s if shape.decoder else 0.0,  # the first comes of the prefill
        turn_s=_open_s(shape, board) if use.low and shape.decoder else 0.0,
    )
    if not shape.decoder:  # `embed` prepares for many clips
        use = replace(use, packed=not use.low)
    kept = account(shape, use, int(board.process_mb * 1e6))
    low = None if use.low else predict(shape, board, use.with_low_memory, threads)
    return Prediction(shape, use, kept, times, rows, int(board.memory_mb * 1e6), board.watts, low)


def load_s(shape: ModelShape, board: Board) -> float:
    """Until Python, engines, graphs and vocabulary are there, with all files on the disk."""
    graphs = shape.graph_bytes + shape.beside_bytes + shape.front_end_bytes
    read = (graphs + (shape.decoder.bytes if shape.decoder else 0)) / 1e6 / board.disk_mb_per_s
    tokens = shape.decoder.sizes.tokens if shape.decoder else 0
    return board.start_s + read + max(_open_s(shape, board), tokens * board.vocabulary_us / 1e6)


def _open_s(shape: ModelShape, board: Board) -> float:
    """Of graphs that are in memory."""
    return (shape.graph_bytes + shape.beside_bytes) / 1e6 / board.open_mb_per_s


def _front_end_s(shape: ModelShape, rates: Rates, clip_s: float) -> float:
    operations = clip_s * FRAMES_PER_S * 2 * shape.front_end_bytes / 4
    return operations / 1e9 / (_NARROW * rates.fp32_gop_per_s)


def _chunk_s(shape: ModelShape, rates: Rates, patches: int) -> float:
    """Encoder and projector: products, attention, and all that is neither."""
    encoder = shape.encoder
    rate = rates.fp32_gop_per_s if encoder.precision in ("fp32", "fp16") else rates.int8_gop_per_s
    products = 2 * shape.heard_parameters * patches / 1e9 / rate
    attention = 4 * patches * patches * encoder.embed_dim * encoder.depth / 1e9 / rates.fp32_gop_per_s
    others = rates.encoder_value_ns * 1e-9 * patches * encoder.embed_dim * encoder.depth
    read = (shape.graph_bytes + shape.beside_bytes) / 1e9 / max(one.decode_gb_per_s for one in rates.types.values())
    return products + attention + others + read + rates.encoder_block_us * 1e-6 * encoder.depth


def _prefill_s(decoder: DecoderShape, rates: Rates, rows: int) -> float:
    """Weights are read once for all rows, and multiplied with each; one row makes logits."""
    sizes, head = decoder.sizes, decoder.head
    start = sum(part.bytes / 1e9 / rates.of(part.kind).start_gb_per_s for part in decoder.body)
    start += head.bytes / 1e9 / rates.of(head.kind).decode_gb_per_s
    products = sum(2 * part.values * rows / 1e9 / rates.of(part.kind).prefill_gop_per_s for part in decoder.body)
    others = rates.decoder_value_ns * 1e-9 * rows * row_values(sizes) * sizes.layers
    return products + others + start + rates.layer_us * 1e-6 * sizes.layers


def row_values(sizes: Sizes) -> int:
    """What a row costs a layer beside products: the inner part once, and attention thrice."""
    return sizes.inner + 3 * sizes.heads * sizes.head_width


def _read_s(decoder: DecoderShape, rates: Rates) -> float:
    parts = (*decoder.body, decoder.head)
    return sum(part.bytes / 1e9 / rates.of(part.kind).decode_gb_per_s for part in parts)


def _token_s(decoder: DecoderShape, rates: Rates, behind: int) -> float:
    """One row behind so many others, and choosing a token."""
    sizes = decoder.sizes
    seen = rates.position_ns * 1e-9 * behind * sizes.heads * sizes.head_width * sizes.layers
    chosen = rates.logit_ns * 1e-9 * sizes.tokens
    return _read_s(decoder, rates) + seen + chosen + (rates.layer_us * sizes.layers + rates.token_us) * 1e-6
