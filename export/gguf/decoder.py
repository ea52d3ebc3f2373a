"""The text decoder as GGUF: merged tensors are streamed into the file, llama.cpp's own quantizer does the rest.

Architectures `qwen2` and `qwen3`. Their rotation is of the NEOX kind, as in transformers, so q and k are stored as
they are; the multimodal rotary sections of the 7B's checkpoint change nothing for one-dimensional positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.checkpoint.sizes import EMBEDDING, HEAD
from dasheng_edge.export.files.tensor_files import row_blocks
from dasheng_edge.quant.decoder.gguf_file import gguf_tensors, sampled_rows
from dasheng_edge.quant.decoder.llama_quantize import FILE_TYPES
from dasheng_edge.quant.decoder.types import PlainType
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.deviation import Deviation
from dasheng_edge.runtime.errors import ExportError
from dasheng_edge.runtime.progress import Advance, no_advance

from .metadata import PREFIX, add_metadata, add_vocabulary
from .tokenizer import Vocabulary

ARCHITECTURES = {"qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
COPIED: Mapping[str, GGMLQuantizationType] = {  # written here; the others by llama.cpp's quantizer
    "F32": GGMLQuantizationType.F32,
    "F16": GGMLQuantizationType.F16,
    "BF16": GGMLQuantizationType.BF16,
}
WrittenType = PlainType | Literal["exact"]  # the last: each tensor in a type that holds it exactly
BLOCK_BYTES = 64 << 20  # of float32: how much of a tensor is in memory at a time, twice
SUPER_BLOCK = 256  # values that a K-quant or IQ4_XS block holds
VOCABULARY_BYTES = 16 << 20  # more than tokenizer and metadata take
# More than the layers take, bits for each value, by what a type's name begins with: llama.cpp stores some of their
# matrices in larger types. Embedding and head may become Q8_0 in any.
LAYER_BITS = {"Q8": 8.5, "Q6": 6.6, "Q5": 6.1, "Q4": 5.1, "IQ": 5.1, "Q3": 4.6, "Q2": 3.6}
END_BITS = 8.5


@dataclass(frozen=True)
class DecoderReport:
    """What was written, and how far it is from its source."""

    bytes: int
    relative_error: float  # RMS(stored - merged) / RMS(merged) over all sampled matrices
    worst_matrix: str
    worst_error: float  # the same for this matrix alone
    vector_error: float  # and over all norms and biases, which are stored in F32 and must be exact
    types: dict[str, int]  # stored type -> number of tensors
    fallbacks: tuple[str, ...]  # matrices whose rows the type cannot divide


def tensor_count(merged: MergedTensors) -> int:
    """Tensors of the decoder."""
    return len(merged.names(PREFIX))


def intermediate_type(merged: MergedTensors, kind: PlainType) -> WrittenType:
    """What `write_gguf` must write first: the file itself, or what the quantizer is fed with, which is exact."""
    if kind in COPIED:
        return kind
    types = _stored_types(merged, "exact")
    exact = {stored for name, stored in types.items() if len(merged.shape(name)) > 1}
    for whole in get_args(PlainType):
        if whole in COPIED and exact == {COPIED[whole]}:
            return cast("PlainType", whole)
    return "exact"


def stored_bytes(merged: MergedTensors, kind: WrittenType) -> int:
    """Bytes of tensor data that `write_gguf` writes."""
    return sum(_bytes(merged.shape(name), stored) for name, stored in _stored_types(merged, kind).items())


def needed_bytes(merged: MergedTensors, kind: PlainType) -> int:
    """Free space that the decoder takes while it is made, at most: the file, and the one that the quantizer reads."""
    first = stored_bytes(merged, intermediate_type(merged, kind)) + VOCABULARY_BYTES
    if kind in COPIED:
        return first
    bits = 0.0
    for name in merged.names(PREFIX):
        of_a_value = LAYER_BITS[kind[:2]] if ".layers." in name else END_BITS
        bits += float(np.prod(merged.shape(name))) * (32 if len(merged.shape(name)) == 1 else of_a_value)
    return first + int(bits / 8) + VOCABULARY_BYTES


def write_gguf(
    path: Path,
    merged: MergedTensors,
    vocabulary: Vocabulary,
    kind: WrittenType,
    advance: Advance = no_advance,
    sampling: Sampling | None = None,
) -> None:
    """Write the decoder as F32, F16, BF16 or exactly (matrices; vectors stay F32), a block of rows at a time.

    `sampling` is what other programs shall do by default.

    Raises:
        ExportError: a weight does not fit into the type's range.
    """
    names = _tensor_names(merged)
    types = _stored_types(merged, kind)
    writer = gguf.GGUFWriter(path, merged.checkpoint.text_decoder.arch)
    try:
        # An exact file has mixed types, which have no name; the quantizer states its own when it is done.
        add_metadata(writer, merged, FILE_TYPES["F32" if kind == "exact" else kind], sampling)
        add_vocabulary(writer, vocabulary)
        for stored, name in names.items():
            shape, kept_as = merged.shape(name), types[name]
            writer.add_tensor_info(stored, shape, np.dtype(np.float32), _bytes(shape, kept_as), raw_dtype=kept_as)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        file = writer.fout[0]
        writer.write_padding(file, file.tell())
        for name, stored_type in types.items():
            start = file.tell()
            for first, last in row_blocks(merged.shape(name), BLOCK_BYTES):
                block = _encode(name, merged.rows(name, first, last), stored_type)
                file.write(block.data)
                advance(block.nbytes)
            writer.write_padding(file, file.tell() - start)
    finally:
        writer.close()


def measure(path: Path, merged: MergedTensors, kind: PlainType, advance: Advance = no_advance) -> DecoderReport:
    """Compare what the file holds, dequantized, with the merged tensors, on rows spread over each tensor.

    Matrices and vectors apart: norms and biases are exact, and their power would make the error look small.
    """
    names = _tensor_names(merged)
    types: dict[str, int] = {}
    matrices: dict[str, Deviation] = {}
    vectors: dict[str, Deviation] = {}
    for stored, tensor in gguf_tensors(path).items():
        types[tensor.kind.name] = types.get(tensor.kind.name, 0) + 1
        name = names[stored]
        deviation = (vectors if len(merged.shape(name)) == 1 else matrices)[name] = Deviation()
        for start, stop in sampled_rows(merged.shape(name)):
            deviation.add(tensor.rows(start, stop), merged.rows(name, start, stop).numpy())
        advance(1)
    relative = {name: deviation.relative_rms for name, deviation in matrices.items()}
    worst = list(relative)[int(np.argmax(list(relative.values())))]  # NaN counts as the largest
    wide = kind not in COPIED
    return DecoderReport(
        path.stat().st_size,
        Deviation.total(matrices.values()).relative_rms,
        worst,
        relative[worst],
        Deviation.total(vectors.values()).relative_rms,
        types,
        tuple(name for name in matrices if wide and _falls_back(merged.shape(name), kind)),
    )


def _tensor_names(merged: MergedTensors) -> dict[str, str]:
    """llama.cpp's tensor names -> the checkpoint's."""
    spec = merged.checkpoint.text_decoder
    mapping = gguf.get_tensor_name_map(ARCHITECTURES[spec.arch], spec.layers)
    names: dict[str, str] = {}
    for name in merged.names(PREFIX):
        stored = mapping.get_name(name.removeprefix(PREFIX), try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        names[stored] = name
    return names


def _stored_types(merged: MergedTensors, kind: WrittenType) -> dict[str, GGMLQuantizationType]:
    """The type of each tensor; what adapters change is exact in F32 only.

    Norms and biases stay F32 as in llama.cpp's own converter: some of its operators take nothing else.
    """
    changed = set(merged.adapted()).union(*(adapter.replaced for adapter in merged.adapters))
    changed = changed.union(*(adapter.loaded for adapter in merged.adapters))
    if changed & {EMBEDDING, HEAD}:  # which may be one tensor, and adapters may name it either way
        changed |= {EMBEDDING, HEAD}
    types: dict[str, GGMLQuantizationType] = {}
    for name in merged.names(PREFIX):
        if len(merged.shape(name)) == 1:
            types[name] = GGMLQuantizationType.F32
        elif kind in COPIED:
            types[name] = COPIED[kind]
        else:
            types[name] = COPIED["F32" if name in changed else merged.checkpoint.sources[name].dtype]
    return types


def _bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    return int(np.prod(shape)) * (4 if kind == GGMLQuantizationType.F32 else 2)


def _encode(
    name: str, block: Tensor, kind: GGMLQuantizationType
) -> npt.NDArray[np.float32] | npt.NDArray[np.float16] | npt.NDArray[np.int16]:
    """Rows float32 in the type; PyTorch rounds to nearest even, as llama.cpp does, and three times as fast."""
    if kind == GGMLQuantizationType.F32:
        return block.contiguous().numpy()
    if kind == GGMLQuantizationType.BF16:
        return block.to(torch.bfloat16).view(torch.int16).numpy()
    half = block.to(torch.float16)
    if not torch.isfinite(half).all():
        largest = float(block.abs().max())
        raise ExportError(f"{name} holds {largest:g}, F16 reaches 65504; export with --decoder BF16 or F32")
    return half.numpy()


def _falls_back(shape: tuple[int, ...], kind: PlainType) -> bool:
    block = SUPER_BLOCK if "_K" in kind or kind == "IQ4_XS" else 32
    return len(shape) == 2 and shape[1] % block != 0
