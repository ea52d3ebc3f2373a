"""The decoder of a bundle in another type: llama.cpp's quantizer, and what it costs the weights."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
from gguf import GGMLQuantizationType

from dasheng_edge.runtime.bundle import DECODER, Bundle
from dasheng_edge.runtime.errors import QuantizeError

from .decoder_types import COPIED_TYPES, NEED_IMATRIX, DecoderType
from .gguf_file import gguf_tensors, sampled_rows
from .imatrix_file import read_imatrix
from .importance import unused
from .quantizer import Guidance, quantize

Advance = Callable[[int], None]
# What single tensors may be stored in: types of file types, so that the loss can be measured.
TENSOR_TYPES = tuple(
    GGMLQuantizationType[name]
    for name in (
        "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS",
        "Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS",
    )
)  # fmt: skip


@dataclass(frozen=True)
class DecoderOptions:
    """What the decoder is made in."""

    kind: DecoderType
    imatrix: Path | None = None
    tensor_types: Mapping[str, GGMLQuantizationType] = field(default_factory=dict)


@dataclass(frozen=True)
class DecoderReport:
    """What was written, and how far its matrices are from their source."""

    bytes: int
    relative_error: float  # RMS(stored - source) / RMS(source) over all sampled matrices
    types: dict[str, int]  # stored type -> number of tensors


def parse_tensor_types(texts: tuple[str, ...]) -> dict[str, GGMLQuantizationType]:
    """`PATTERN=TYPE`, as `llama-quantize --tensor-type` takes them.

    Raises:
        QuantizeError: one is not of that form, is no regular expression, or names no type.
    """
    types = {}
    for text in texts:
        pattern, equals, name = text.rpartition("=")
        known = {kind.name: kind for kind in TENSOR_TYPES}
        try:
            re.compile(pattern.lower())  # as it is searched, here and by llama-quantize
        except re.error as error:
            raise QuantizeError(f"--tensor-type {text}: {pattern!r} is no regular expression: {error}") from error
        if not equals or not pattern or name.upper() not in known:
            raise QuantizeError(
                f"--tensor-type {text} cannot be read; expected PATTERN=TYPE, with a regular expression and one of "
                f"{', '.join(known)}, e.g. attn_v=Q8_0"
            )
        types[pattern] = known[name.upper()]
    return types


def check_decoder(source: Bundle, options: DecoderOptions) -> None:
    """Whether a decoder can be made of a bundle's, before any work is done.

    Raises:
        BundleKindError: the bundle has none.
        QuantizeError: it is quantized already, or the type needs an importance matrix that is not there or is of
            another model.
    """
    stored, kind = source.text_facts()[0].precision, options.kind
    ranks = get_args(DecoderType)
    if kind != stored and stored not in COPIED_TYPES:
        raise QuantizeError(
            f"the decoder of {source.folder} is {stored} already, quantizing needs F32, BF16 or F16; start from the "
            "bundle that `dasheng-edge export` made"
        )
    if ranks.index(kind) < ranks.index(stored):
        raise QuantizeError(
            f"the decoder of {source.folder} is {stored}, which {kind} would store larger and no better; choose "
            f"{stored} or a smaller --decoder"
        )
    if options.imatrix is not None:
        imatrix = read_imatrix(options.imatrix)
        if missing := unused(imatrix, source.path(DECODER)):
            raise QuantizeError(
                f"{options.imatrix} says nothing about {missing[0]} and {len(missing) - 1} more matrices of "
                f"{source.folder}, or is of other widths; measure one with this very model"
            )
    if options.tensor_types and kind in COPIED_TYPES:
        raise QuantizeError(f"--tensor-type needs a quantized --decoder: with {kind}, llama.cpp stores all matrices so")
    if others := [stored.name for stored in options.tensor_types.values() if stored not in TENSOR_TYPES]:
        known = ", ".join(one.name for one in TENSOR_TYPES)
        raise QuantizeError(f"--tensor-type cannot store tensors in {others[0]}; expected one of {known}")
    unknown = [
        pattern for pattern in options.tensor_types
        if not any(re.search(pattern.lower(), name) for name in gguf_tensors(source.path(DECODER)))
    ]  # fmt: skip
    if unknown:
        raise QuantizeError(f"--tensor-type {unknown[0]} matches no tensor of the decoder; expected e.g. attn_v")


def quantize_decoder(
    source: Bundle, target: Path, options: DecoderOptions, threads: int, advance: Advance = lambda _: None
) -> DecoderReport:
    """Write the decoder in a type; `advance` is told of each tensor.

    Raises what `check_decoder` and `quantizer.quantize` raise.
    """
    check_decoder(source, options)
    stored, path = source.text_facts()[0].precision, source.path(DECODER)
    if options.kind == stored and not options.tensor_types:
        shutil.copyfile(path, target)
    else:
        if options.kind in NEED_IMATRIX and options.imatrix is None:
            raise QuantizeError(
                f"{options.kind} needs an importance matrix; pass --calibrate CLIPS to measure one, or --imatrix FILE"
            )
        quantize(path, target, options.kind, threads, advance, Guidance(options.imatrix, options.tensor_types))
    return measure(path, target)


def measure(source: Path, target: Path) -> DecoderReport:
    """Compare the matrices of two files, dequantized, on rows spread over each."""
    error = power = 0.0
    types: dict[str, int] = {}
    originals = gguf_tensors(source)
    for name, tensor in gguf_tensors(target).items():
        types[tensor.kind.name] = types.get(tensor.kind.name, 0) + 1
        if len(tensor.shape) == 1:
            continue
        for start, stop in sampled_rows(tensor.shape):
            want = originals[name].rows(start, stop).astype(np.float64)
            error += float(np.square(tensor.rows(start, stop) - want).sum())
            power += float(np.square(want).sum())
    return DecoderReport(target.stat().st_size, (error / power) ** 0.5, types)
