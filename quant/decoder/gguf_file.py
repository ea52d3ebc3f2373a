"""Where a GGUF file stores its tensors, and rows of them as float32.

`gguf.GGUFReader` makes an array of every token and every merge of the vocabulary: 450 MB and six seconds for
Qwen's. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFValueType

from dasheng_edge.runtime.errors import ExportError

SAMPLED_VALUES = 1 << 18  # of each tensor, at each of SAMPLED_PLACES, when an error is measured
SAMPLED_PLACES = 4


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a GGUF file."""

    path: Path
    kind: GGMLQuantizationType
    shape: tuple[int, ...]  # as PyTorch counts: rows first
    start: int  # of its data, in the file

    @property
    def row_bytes(self) -> int:
        """Bytes of a row; of a vector, bytes of a value."""
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape[1:])) // block * size if len(self.shape) > 1 else size

    def rows(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows [start, stop), dequantized."""
        with self.path.open("rb") as file:
            file.seek(self.start + start * self.row_bytes)
            stored = np.frombuffer(file.read((stop - start) * self.row_bytes), np.uint8)
        values = gguf.quants.dequantize(stored.reshape(stop - start, self.row_bytes), self.kind)
        return values.reshape(stop - start, *self.shape[1:])


def tensor_bytes(path: Path) -> tuple[int, int]:
    """Where the tensors' data begins and ends in a GGUF file."""
    tensors = gguf_tensors(path).values()
    # Of a vector, a "row" is one value.
    ends = [tensor.start + tensor.shape[0] * tensor.row_bytes for tensor in tensors]
    return min(tensor.start for tensor in tensors), max(ends)


def gguf_tensors(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a GGUF file by name.

    Raises:
        ExportError: it is not such a file, or is shorter than it says.
    """
    try:
        with path.open("rb") as file:
            if file.read(8) != struct.pack("<4sI", b"GGUF", gguf.GGUF_VERSION):
                raise ExportError(f"{path} is not a GGUF file of version {gguf.GGUF_VERSION}; export it again")
            count, pairs = struct.unpack("<QQ", file.read(16))
            for _ in range(pairs):
                _skip_string(file)
                _skip_value(file, _number(file, "<I"))
            described = [_described(file) for _ in range(count)]
            data = -(-file.tell() // gguf.GGUF_DEFAULT_ALIGNMENT) * gguf.GGUF_DEFAULT_ALIGNMENT
    except (struct.error, ValueError, KeyError) as error:
        raise ExportError(f"{path} is truncated or broken ({error}); export it again") from error
    return {name: StoredTensor(path, kind, shape, data + offset) for name, kind, shape, offset in described}


def sampled_rows(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Row ranges at the beginning, the end and between; the whole tensor if it is small."""
    rows = shape[0]
    step = max(1, SAMPLED_VALUES // int(np.prod(shape[1:])))
    if rows <= step * SAMPLED_PLACES:
        return [(0, rows)]
    starts = np.linspace(0, rows - step, SAMPLED_PLACES).astype(int)
    return [(int(start), int(start) + step) for start in starts]


def _number(file: BinaryIO, layout: str) -> int:
    return int(struct.unpack(layout, file.read(struct.calcsize(layout)))[0])


def _skip_string(file: BinaryIO) -> None:
    file.seek(_number(file, "<Q"), 1)


def _skip_value(file: BinaryIO, kind: int) -> None:
    """Skip a value, or all values of an array."""
    count = 1
    if kind == GGUFValueType.ARRAY:
        kind, count = _number(file, "<I"), _number(file, "<Q")
    if kind == GGUFValueType.STRING:
        for _ in range(count):
            _skip_string(file)
    else:
        width = np.dtype(gguf.GGUFReader.gguf_scalar_to_np[GGUFValueType(kind)]).itemsize
        file.seek(count * width, 1)


def _described(file: BinaryIO) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
    """Name, type, shape and offset into the data of the next tensor."""
    name = file.read(_number(file, "<Q")).decode("utf-8")
    shape = [_number(file, "<Q") for _ in range(_number(file, "<I"))]
    kind = GGMLQuantizationType(_number(file, "<I"))
    return name, kind, tuple(reversed(shape)), _number(file, "<Q")
