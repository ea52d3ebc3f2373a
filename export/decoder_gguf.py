"""The text decoder as GGUF: merged tensors are streamed into the file, llama.cpp's own quantizer does the rest.

Architecture `qwen2`. Its rotation is of the NEOX kind, as in transformers, so q and k are stored as they
are; the multimodal rotary sections of the checkpoint change nothing for one-dimensional positions.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, LlamaFileType

from dasheng_edge.runtime.errors import ExportError, OutputWriteError

from .adapter import MergedTensors
from .checkpoint import BLOCK_BYTES, row_blocks
from .options import DecoderType
from .tokenizer import Vocabulary

PREFIX = "decoder."
COPIED: Mapping[str, GGMLQuantizationType] = {  # written here; the others by llama.cpp's quantizer
    "F32": GGMLQuantizationType.F32,
    "F16": GGMLQuantizationType.F16,
    "BF16": GGMLQuantizationType.BF16,
}
FILE_TYPES: Mapping[str, LlamaFileType] = {
    name: LlamaFileType["ALL_F32" if name == "F32" else f"MOSTLY_{name}"] for name in get_args(DecoderType)
}
SUPER_BLOCK = 256  # values that a K-quant or IQ4_XS block holds
SAMPLED_VALUES = 1 << 18  # of each tensor, at each of SAMPLED_PLACES, when the error is measured
SAMPLED_PLACES = 4
_QUANTIZED_TENSOR = re.compile(rb"\[ *\d+/ *\d+\] ")  # how a line of the quantizer's log about a tensor begins

Advance = Callable[[int], None]  # is told how many bytes were written, or tensors are done


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
    return len(_names(merged))


def stored_bytes(merged: MergedTensors, kind: DecoderType) -> int:
    """Bytes of tensor data that `write_gguf` writes for F32, F16 or BF16."""
    shapes = [merged.shape(name) for name in _names(merged)]
    return sum(int(np.prod(shape)) * (4 if len(shape) == 1 or kind == "F32" else 2) for shape in shapes)


def intermediate_type(merged: MergedTensors, kind: DecoderType) -> DecoderType:
    """What the quantizer is fed with: BF16 where that is the source itself, else F32; both are exact."""
    if kind in COPIED:
        return kind
    sources = [merged.checkpoint.sources[name] for name in _names(merged)]
    exact = not merged.adapters and all(source.dtype == "BF16" for source in sources)
    return "BF16" if exact else "F32"


def write_gguf(
    path: Path,
    merged: MergedTensors,
    vocabulary: Vocabulary,
    kind: DecoderType,
    advance: Advance = lambda _: None,
) -> None:
    """Write the decoder as F32, F16 or BF16 (matrices; vectors stay F32), a block of rows at a time.

    Raises:
        ExportError: a weight does not fit into the type's range.
    """
    names = _tensor_names(merged)
    writer = gguf.GGUFWriter(path, "qwen2")
    try:
        _add_metadata(writer, merged, kind)
        add_vocabulary(writer, vocabulary)
        for stored, name in names.items():
            shape = merged.shape(name)
            stored_type = _type_of(shape, kind)
            width = 4 if stored_type == GGMLQuantizationType.F32 else 2
            writer.add_tensor_info(
                stored, shape, np.dtype(np.float32), int(np.prod(shape)) * width, raw_dtype=stored_type
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        file = writer.fout[0]
        writer.write_padding(file, file.tell())
        for name in names.values():
            start = file.tell()
            for first, last in row_blocks(merged.shape(name), BLOCK_BYTES):
                block = _encode(name, merged.rows(name, first, last).numpy(), _type_of(merged.shape(name), kind))
                file.write(block.data)
                advance(block.nbytes)
            writer.write_padding(file, file.tell() - start)
    finally:
        writer.close()


@cache
def _llama() -> Any:
    """The bindings, loaded on first use: `Any`, since their functions are C calls."""
    from llama_cpp import llama_cpp

    return llama_cpp


def quantize(
    source: Path, target: Path, kind: DecoderType, threads: int = 0, advance: Advance = lambda _: None
) -> None:
    """Quantize a GGUF with llama.cpp's quantizer; 0 threads means one per core.

    Raises:
        OutputWriteError: llama.cpp could not write the file.
        ExportError: llama.cpp refused for another reason, with its own words.
    """
    llama = _llama()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = int(FILE_TYPES[kind])
    parameters.nthread = threads
    with _llama_log(advance) as lines:
        failed = llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.pointer(parameters))
    if not failed:
        return
    said = " ".join(" ".join(lines).split()) or "no reason given"
    if "iostream" in said:  # the C++ library's word for a failed write
        raise OutputWriteError(f"cannot write {target.name}: llama.cpp says {said!r}; is the disk full?")
    raise ExportError(f"llama.cpp could not quantize the decoder to {kind}: {said}; try another --decoder")


def measure(path: Path, merged: MergedTensors, kind: DecoderType, advance: Advance = lambda _: None) -> DecoderReport:
    """Compare what the file holds, dequantized, with the merged tensors, on rows spread over each tensor.

    Matrices and vectors apart: norms and biases are exact, and their power would make the error look small.
    """
    names = _tensor_names(merged)
    types: dict[str, int] = {}
    matrices: dict[str, tuple[float, float]] = {}
    vectors: dict[str, tuple[float, float]] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
        error = power = 0.0
        name = names[tensor.name]
        for start, stop in _sampled_rows(merged.shape(name)):
            want = merged.rows(name, start, stop).numpy().astype(np.float64)
            got = gguf.quants.dequantize(tensor.data[start:stop], tensor.tensor_type).astype(np.float64)
            error += float(np.square(got - want).sum())
            power += float(np.square(want).sum())
        (vectors if len(merged.shape(name)) == 1 else matrices)[name] = error, power
        advance(1)
    relative = {name: _relative([squares]) for name, squares in matrices.items()}
    worst = list(relative)[int(np.argmax(list(relative.values())))]  # NaN counts as the largest
    wide = kind not in COPIED
    return DecoderReport(
        path.stat().st_size,
        _relative(matrices.values()),
        worst,
        relative[worst],
        _relative(vectors.values()),
        types,
        tuple(name for name in matrices if wide and _falls_back(merged.shape(name), kind)),
    )


def _relative(squares: Iterable[tuple[float, float]]) -> float:
    """Sums of squares (error, power) of some tensors -> RMS of the error over RMS of the source."""
    error, power = (sum(values) for values in zip(*squares, strict=True))
    return float((error / power if power else error) ** 0.5)


def _names(merged: MergedTensors) -> list[str]:
    return [name for name in merged.checkpoint.sources if name.startswith(PREFIX)]


def _tensor_names(merged: MergedTensors) -> dict[str, str]:
    """llama.cpp's tensor names -> the checkpoint's."""
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, merged.checkpoint.decoder.layers)
    names: dict[str, str] = {}
    for name in _names(merged):
        stored = mapping.get_name(name.removeprefix(PREFIX), try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        names[stored] = name
    return names


def _type_of(shape: tuple[int, ...], kind: DecoderType) -> GGMLQuantizationType:
    """Norms and biases stay F32 as in llama.cpp's own converter: some of its operators take nothing else."""
    return GGMLQuantizationType.F32 if len(shape) == 1 else COPIED[kind]


def _encode(
    name: str, block: npt.NDArray[np.float32], kind: GGMLQuantizationType
) -> npt.NDArray[np.float32 | np.float16 | np.uint8]:
    if kind == GGMLQuantizationType.F32:
        return np.ascontiguousarray(block)
    if kind == GGMLQuantizationType.BF16:
        return np.ascontiguousarray(gguf.quants.quantize(block, kind))
    with np.errstate(over="ignore"):
        half = block.astype(np.float16)
    if not np.isfinite(half).all():
        raise ExportError(
            f"{name} holds {float(np.abs(block).max()):g}, F16 reaches 65504; export with --decoder BF16 or F32"
        )
    return half


def _falls_back(shape: tuple[int, ...], kind: DecoderType) -> bool:
    block = SUPER_BLOCK if "_K" in kind or kind == "IQ4_XS" else 32
    return len(shape) == 2 and shape[1] % block != 0


def _sampled_rows(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Row ranges at the beginning, the end and between; the whole tensor if it is small."""
    rows = shape[0]
    step = max(1, SAMPLED_VALUES // int(np.prod(shape[1:])))
    if rows <= step * SAMPLED_PLACES:
        return [(0, rows)]
    starts = np.linspace(0, rows - step, SAMPLED_PLACES).astype(int)
    return [(int(start), int(start) + step) for start in starts]


def _add_metadata(writer: gguf.GGUFWriter, merged: MergedTensors, kind: DecoderType) -> None:
    checkpoint, spec = merged.checkpoint, merged.checkpoint.decoder
    name = checkpoint.folder.resolve().name
    writer.add_type("model")
    writer.add_name(" + ".join((name, *(adapter.name for adapter in merged.adapters))))
    writer.add_size_label(gguf.size_label(checkpoint.parameters(PREFIX), 0, 0, 0))
    if licence := _licence(checkpoint.folder):
        writer.add_license(licence)
    writer.add_context_length(spec.context_length)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(spec.layers)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_layer_norm_rms_eps(spec.rms_norm_eps)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _licence(folder: Path) -> str | None:
    """Licence that the model card states in its YAML header."""
    card = folder / "README.md"
    header = re.match(r"---\n(.*?)\n---\n", card.read_text("utf-8", "replace"), re.DOTALL) if card.is_file() else None
    stated = re.search(r"^license:\s*(\S+)", header[1], re.MULTILINE) if header else None
    return stated[1] if stated else None


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """State the tokenizer; nothing is added before a text, since the chat template says all there is."""
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for byte-level BPE
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types([int(kind) for kind in vocabulary.types])
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_eos_token_id(vocabulary.eos_id)
    if vocabulary.pad_id is not None:
        writer.add_pad_token_id(vocabulary.pad_id)
    if vocabulary.bos_id is not None:
        writer.add_bos_token_id(vocabulary.bos_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(vocabulary.chat_template)


@contextmanager
def _llama_log(advance: Advance) -> Generator[list[str]]:
    """Collects llama.cpp's warnings and errors; whoever listened before does so again afterwards.

    `advance` is told of each tensor that the quantizer begins with: "[   3/  27] blk.0.attn_k.weight ...".
    """
    llama = _llama()
    lines: list[str] = []

    def collect(level: int, text: bytes, _: object) -> None:
        if level in (3, 4):  # GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR
            lines.append(text.decode("utf-8", "replace"))
        elif _QUANTIZED_TENSOR.match(text):
            advance(1)

    callback = llama.llama_log_callback(collect)  # must outlive the calls of llama.cpp
    before, data = llama.llama_log_callback(), ctypes.c_void_p()
    llama.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    llama.llama_log_set(callback, None)
    try:
        yield lines
    finally:
        llama.llama_log_set(before, data)
