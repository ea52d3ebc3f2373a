"""What the recipes of `quantize` would make of a bundle, in bytes: no weight is read, and nothing is written.

The shares are those that llama.cpp's quantizer plans for Qwen decoders; a test holds them against its own dry run, and
the names against `quant.recipes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dasheng_edge.runtime.bundle.manifest import KvType
from dasheng_edge.runtime.engine_options import FLOAT_TYPES
from dasheng_edge.runtime.errors import BoardError
from dasheng_edge.runtime.gguf.check import BLOCKS
from dasheng_edge.runtime.names import did_you_mean

from .memory import Use, account
from .shape import DecoderShape, Matrices, ModelShape

ALL = "all"  # a word for all recipes
LOW_WAY = '--low-memory (memory="low")'
_F16, _Q4_K, _Q5_K, _Q6_K, _IQ3_XXS, _IQ3_S, _IQ2_S = 1, 12, 13, 14, 18, 21, 22  # enum ggml_type


@dataclass(frozen=True)
class RecipeSizes:
    """Precision of encoder and projector, and types of the decoder's matrices."""

    encoder: str
    value_bytes: float  # of an encoder's weight
    body: Mapping[int, float]  # share of the layers' values in each type
    head: int
    table: int  # of embeddings, where they are not the head's
    kv_type: KvType
    note: str = ""


# The finest first.
RECIPE_SIZES: Mapping[str, RecipeSizes] = {
    "reference": RecipeSizes("fp32", 4.0, {_F16: 1.0}, _F16, _F16, "f16"),
    "balanced": RecipeSizes("int8", 1.0, {_Q6_K: 1.0}, _Q6_K, _Q6_K, "f16"),
    "small": RecipeSizes("int8", 1.0, {_Q4_K: 0.86, _Q6_K: 0.14}, _Q6_K, _Q4_K, "f16"),
    "tiny": RecipeSizes(
        "mixed", 1.0, {_IQ3_XXS: 0.7, _IQ2_S: 0.18, _IQ3_S: 0.12}, _Q5_K, _IQ3_S, "q8_0",
        note="its encoder is chosen by measuring, and takes int8's bytes at most",
    ),
}  # fmt: skip


def made(shape: ModelShape, recipe: str) -> ModelShape:
    """What a recipe makes of a bundle.

    Raises:
        BoardError: there is no such recipe, or the bundle is quantized already.
    """
    if recipe not in RECIPE_SIZES:
        raise BoardError(f"no recipe is called {recipe!r}; {did_you_mean(recipe, [*RECIPE_SIZES, ALL])}")
    if not is_source(shape):
        raise BoardError(
            f"{shape.name} is quantized already, so no recipe is made of it; name the bundle as it was exported"
        )
    return _sized(shape, recipe)


def fitting(shape: ModelShape, room_bytes: int, use: Use) -> str:
    """What would fit where a bundle does not, and what it takes; "" if nothing would.

    That is the same bundle with low memory, or else the finest recipe.
    """
    if not use.low and shape.decoder is not None:
        with_low = account(shape, use.with_low_memory).taken()
        if with_low <= room_bytes:
            return f"take {LOW_WAY}, with which it takes {with_low / 1e6:,.0f} MB"
    for recipe in RECIPE_SIZES:
        smaller = _sized(shape, recipe)
        if smaller.total_bytes < shape.total_bytes and (taken := account(smaller, use).taken()) <= room_bytes:
            source = "it" if is_source(shape) else "the bundle that it was made of"
            return f"quantize {source} to {recipe}, which takes {taken / 1e6:,.0f} MB"
    return ""


def _sized(shape: ModelShape, recipe: str) -> ModelShape:
    sizes, encoder = RECIPE_SIZES[recipe], shape.encoder
    if encoder.precision != "fp32":  # as small as it gets, nearly
        sizes = replace(sizes, encoder=encoder.precision, value_bytes=4.0)
    matrices = 12 * encoder.embed_dim**2 * encoder.depth + shape.projector_parameters
    scales = 0 if sizes.value_bytes == 4 else 4 * 9 * encoder.embed_dim * encoder.depth
    before = shape.graph_bytes + shape.beside_bytes
    graphs = max(0, int(before - (4 - sizes.value_bytes) * matrices + scales))
    beside = graphs * shape.beside_bytes // before if sizes.value_bytes == 4 else 0
    decoder = _decoder(shape.decoder, sizes) if shape.decoder else None
    saved = before - graphs + (shape.decoder.bytes - decoder.bytes if shape.decoder and decoder else 0)
    return replace(
        shape,
        name=recipe,
        encoder=encoder.model_copy(update={"precision": sizes.encoder}),
        graph_bytes=graphs - beside,
        beside_bytes=beside,
        decoder=decoder,
        total_bytes=shape.total_bytes - saved,
        notes=(sizes.note,) if sizes.note else (),
    )


def is_source(shape: ModelShape) -> bool:
    """Whether recipes can be made of it."""
    return shape.encoder.precision == "fp32" and (shape.decoder is None or shape.decoder.precision in FLOAT_TYPES)


def decoder_bytes(sizes: RecipeSizes, body: int, head: int, table: int = 0) -> int:
    """Of so many values in layers, in what makes logits, and in embeddings that are not the same."""
    parts = [_matrices(kind, round(share * body)) for kind, share in sizes.body.items()]
    return sum(part.bytes for part in (*parts, _matrices(sizes.head, head), _matrices(sizes.table, table)))


def _decoder(decoder: DecoderShape, sizes: RecipeSizes) -> DecoderShape:
    values = sum(part.values for part in decoder.body)
    body = tuple(_matrices(kind, round(share * values)) for kind, share in sizes.body.items())
    head = _matrices(sizes.head, decoder.head.values)
    table = head if decoder.tied else _matrices(sizes.table, decoder.table.values)
    before = sum(part.bytes for part in (*decoder.body, decoder.table, *(() if decoder.tied else (decoder.head,))))
    after = decoder_bytes(sizes, values, head.values, 0 if decoder.tied else table.values)
    return replace(
        decoder, bytes=decoder.bytes - before + after, body=body, head=head, table=table, kv_type=sizes.kv_type,
        precision="",
    )  # fmt: skip


def _matrices(kind: int, values: int) -> Matrices:
    count, size = BLOCKS[kind]
    return Matrices(kind, values, values // count * size)
