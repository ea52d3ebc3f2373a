"""The decoder of a bundle in another type: llama.cpp's quantizer, and what it costs the weights."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from gguf import GGMLQuantizationType

from dasheng_edge.runtime.bundle.bundle import DECODER, Bundle
from dasheng_edge.runtime.deviation import Deviation
from dasheng_edge.runtime.errors import QuantizeError
from dasheng_edge.runtime.gguf.check import check_gguf
from dasheng_edge.runtime.progress import Advance, no_advance

from .gguf_file import gguf_tensors, sampled_rows
from .imatrix_file import read_imatrix
from .importance import unused
from .llama_quantize import quantize
from .types import COPIED_TYPES, NEED_IMATRIX, DecoderOptions, DecoderType

# What single tensors may be stored in: types of file types, so that the loss can be measured.
TENSOR_TYPES = tuple(
    GGMLQuantizationType[name]
    for name in (
        "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS",
        "Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS",
    )
)  # fmt: skip
# What Python's regular expressions have and those of C++ have not.
_NOT_IN_CPP = re.compile(r"\(\?(?![:=!])[^)]?|(?<!\\)[*+?}]\+")


@dataclass(frozen=True)
class DecoderReport:
    """What was written, and how far its matrices are from their source."""

    bytes: int
    relative_error: float  # RMS(stored - source) / RMS(source) over all sampled matrices
    types: dict[str, int]  # stored type -> number of tensors


def parse_tensor_types(texts: tuple[str, ...]) -> dict[str, GGMLQuantizationType]:
    """`PATTERN=TYPE`, as `llama-quantize --tensor-type` takes them.

    Raises:
        QuantizeError: a text is not of that form, is no regular expression, or names no type.
    """
    types = {}
    for text in texts:
        pattern, equals, name = text.rpartition("=")
        known = {kind.name: kind for kind in TENSOR_TYPES}
        try:
            re.compile(pattern.lower())  # as it is searched, here and by llama-quantize
        except re.error as error:
            raise QuantizeError(f"--tensor-type {text}: {pattern!r} is no regular expression: {error}") from error
        if found := _NOT_IN_CPP.search(pattern):
            raise QuantizeError(
                f"--tensor-type {text}: llama.cpp's regular expressions have no {found[0]!r}; write it without"
            )
        if not equals or not pattern or name.upper() not in known:
            raise QuantizeError(
                f"--tensor-type {text} cannot be read; expected PATTERN=TYPE, with a regular expression and one of "
                f"{', '.join(known)}, e.g. attn_v=Q8_0"
            )
        types[pattern] = known[name.upper()]
    return types


def check_decoder(source: Bundle, options: DecoderOptions, *, measured: bool = False) -> None:
    """Whether a decoder can be made of a bundle's, before any work is done; `measured`: an importance matrix will be.

    Raises:
        BundleKindError: the bundle has none.
        QuantizeError: it is quantized already, an option would go nowhere, or the type needs an importance matrix that
            is not there or is of another model.
    """
    stored, kind = source.decoder_facts.precision, options.kind
    ranks = get_args(DecoderType)
    if stored not in COPIED_TYPES and (kind != stored or options.tensor_types):
        raise QuantizeError(
            f"the decoder of {source.folder} is {stored} already, and to quantize it twice would lose more; start from "
            "a bundle whose decoder is F32, BF16 or F16: `dasheng-edge export CHECKPOINT --decoder F16` makes one"
        )
    if ranks.index(kind) < ranks.index(stored):
        raise QuantizeError(
            f"the decoder of {source.folder} is {stored}, which {kind} would store larger and no better; choose "
            f"{stored} or a smaller --decoder"
        )
    if kind in NEED_IMATRIX and kind != stored and options.imatrix is None and not measured:
        raise QuantizeError(
            f"{kind} needs an importance matrix; pass --calibrate CLIPS to measure one, or --imatrix FILE"
        )
    if options.imatrix is not None:
        _check_imatrix(source, options.imatrix, kind, stored)
    if options.tensor_types:
        _check_tensor_types(source, options, measured=measured or options.imatrix is not None)


def _check_imatrix(source: Bundle, path: Path, kind: DecoderType, stored: str) -> None:
    if kind in COPIED_TYPES or kind == stored:
        raise QuantizeError(f"--imatrix goes with a decoder to be quantized, {kind} is stored without; leave it out")
    if missing := unused(read_imatrix(path), source.path(DECODER)):
        raise QuantizeError(
            f"{path} says nothing about {missing[0]} and {len(missing) - 1} more matrices of {source.folder}, or is of "
            "other widths; measure one with this very model"
        )


def _check_tensor_types(source: Bundle, options: DecoderOptions, *, measured: bool) -> None:
    if options.kind in COPIED_TYPES:
        raise QuantizeError(
            f"--tensor-type needs a quantized --decoder: with {options.kind}, llama.cpp stores all matrices so"
        )
    matrices = [name for name, tensor in gguf_tensors(source.path(DECODER)).items() if len(tensor.shape) > 1]
    for pattern, kind in options.tensor_types.items():
        if kind not in TENSOR_TYPES:
            known = ", ".join(one.name for one in TENSOR_TYPES)
            raise QuantizeError(f"--tensor-type cannot store tensors in {kind.name}; expected one of {known}")
        if not any(re.search(pattern.lower(), name) for name in matrices):
            raise QuantizeError(f"--tensor-type {pattern} matches no matrix of the decoder; expected e.g. attn_v")
        if kind.name in NEED_IMATRIX and not measured:
            raise QuantizeError(
                f"--tensor-type {pattern}={kind.name} needs an importance matrix; pass --calibrate CLIPS to measure "
                "one, or --imatrix FILE"
            )


def quantize_decoder(
    source: Bundle, target: Path, options: DecoderOptions, threads: int, advance: Advance = no_advance
) -> DecoderReport:
    """Write the decoder in a type; `advance` is told of each tensor.

    Raises what `check_decoder`, `check_gguf` and `llama_quantize.quantize` raise.
    """
    check_decoder(source, options)
    stored, path = source.decoder_facts.precision, source.path(DECODER)
    check_gguf(path, source.decoder_facts)
    if options.kind == stored and not options.tensor_types:
        shutil.copyfile(path, target)
    else:
        quantize(path, target, options, threads, advance)
    return measure(path, target)


def measure(source: Path, target: Path) -> DecoderReport:
    """Compare the matrices of two files, dequantized, on rows spread over each."""
    deviation = Deviation()
    types: dict[str, int] = {}
    originals = gguf_tensors(source)
    for name, tensor in gguf_tensors(target).items():
        types[tensor.kind.name] = types.get(tensor.kind.name, 0) + 1
        if len(tensor.shape) == 1:
            continue
        for start, stop in sampled_rows(tensor.shape):
            deviation.add(tensor.rows(start, stop), originals[name].rows(start, stop))
    return DecoderReport(target.stat().st_size, deviation.relative_rms, types)
