"""A GGUF decoder with some of its tokens: rows of the tables are copied as they are stored, whatever their type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from dasheng_edge.runtime.gguf.check import BLOCKS, MERGES, TOKEN_TYPES, TOKENS
from dasheng_edge.runtime.gguf.header import Header, Scalar, Value

TABLES = ("token_embd.weight", "output.weight")  # a row for each token
_COPIED_BYTES = 4 << 20  # at a time
_ID, _SIZE, _LABEL = "_token_id", ".vocab_size", "general.size_label"


def new_ids(kept: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The new id of each token that is kept, int32 [tokens]: their order stays. Of others it says nothing."""
    return np.cumsum(kept, dtype=np.int32) - np.int32(1)


def write_cut_gguf(path: Path, header: Header, kept: NDArray[np.bool_], parameters: int) -> None:
    """Write a decoder with the tokens that are kept, of the file whose `header` this is, with all its arrays."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()  # of the architecture, which is among the others
    try:
        for key, value in header.values.items():
            content = _cut_value(key, value, header, kept, parameters)
            kind = GGUFValueType(value.kind)
            if value.is_array and content:
                writer.add_key_value(key, content, GGUFValueType.ARRAY, kind)
            elif not value.is_array:
                writer.add_key_value(key, content, kind)
        for name, tensor in header.tensors.items():
            shape = (int(kept.sum()), tensor.shape[0]) if name in TABLES else tensor.shape[::-1]
            size, stored = _bytes(shape, tensor.kind), GGMLQuantizationType(tensor.kind)
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        target = writer.fout[0]
        writer.write_padding(target, target.tell())
        with header.path.open("rb") as source:
            for name, tensor in header.tensors.items():
                start, row = header.data + tensor.offset, _bytes(tensor.shape[:1], tensor.kind)
                for first, rows in _runs(kept) if name in TABLES else [(0, math.prod(tensor.shape[1:]))]:
                    _copy(source, start + first * row, rows * row, target)
                writer.write_padding(target, target.tell())
    finally:
        writer.close()


def _bytes(shape: tuple[int, ...], kind: int) -> int:
    values, size = BLOCKS[kind]
    return math.prod(shape) // values * size


def _runs(kept: NDArray[np.bool_]) -> Sequence[tuple[int, int]]:
    """Rows that are kept, as (first, how many)."""
    edges = np.flatnonzero(np.diff(kept.astype(np.int8), prepend=0, append=0)).tolist()
    return [(first, end - first) for first, end in zip(edges[::2], edges[1::2], strict=True)]


def _copy(source: BinaryIO, start: int, size: int, target: BinaryIO) -> None:
    source.seek(start)
    while size:
        block = source.read(min(size, _COPIED_BYTES))
        target.write(block)
        size -= len(block)


def _cut_value(
    key: str, value: Value, header: Header, kept: NDArray[np.bool_], parameters: int
) -> Scalar | Sequence[Scalar]:
    if key in (TOKENS, TOKEN_TYPES):
        return list(compress(header.array(key), kept.tolist()))
    if key == MERGES:
        return _kept_merges(header, kept)
    if key.endswith(_ID):
        return int(new_ids(kept)[header.number(key)])
    if key.endswith(_SIZE):
        return int(kept.sum())
    if key == _LABEL:
        return str(gguf.size_label(parameters, 0, 0, 0)).encode()
    return value.content


def _kept_merges(header: Header, kept: NDArray[np.bool_]) -> list[bytes]:
    """Merges of kept tokens to a kept one, in their order."""
    names = set(compress(header.array(TOKENS), kept.tolist()))
    return [
        merge
        for merge in header.array(MERGES)
        if merge.replace(b" ", b"", 1) in names and names.issuperset(merge.split(b" ", 1))
    ]
