"""Where a GGUF file stores its tensors, and rows of them as float32.

`gguf.GGUFReader` makes an array of every token and every merge of the vocabulary: 450 MB and six seconds for
Qwen's. `runtime.gguf.header` walks over them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from dasheng_edge.runtime.errors import GgufError
from dasheng_edge.runtime.gguf.check import BLOCKS
from dasheng_edge.runtime.gguf.header import read_header

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
        return math.prod(self.shape[1:]) // block * size if len(self.shape) > 1 else size

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
    return min(tensor.start for tensor in tensors), max(
        tensor.start + tensor.shape[0] * tensor.row_bytes for tensor in tensors
    )


def gguf_tensors(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a GGUF file by name.

    Raises:
        GgufError: it is not such a file, or is shorter than it says.
    """
    header = read_header(path)
    tensors = {}
    for name, told in header.tensors.items():
        block, size = BLOCKS.get(told.kind, (0, 0))
        if not block or told.shape[0] % block or (block > 1 and len(told.shape) == 1):
            raise GgufError(
                f"{path} stores {name[:80]!r} {told.shape} as type {told.kind}, which is none of a decoder's"
            )
        end = header.data + told.offset + math.prod(told.shape) // block * size
        if end > header.size:
            raise GgufError(
                f"{path} is truncated or broken: {name[:80]!r} ends at byte {end}, the file has {header.size}; copy or "
                "export it again"
            )
        kind, start = GGMLQuantizationType(told.kind), header.data + told.offset
        tensors[name] = StoredTensor(path, kind, tuple(reversed(told.shape)), start)
    if not tensors:
        raise GgufError(f"{path} holds no tensor; name the GGUF file of a model, or of an importance matrix")
    return tensors


def sampled_rows(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Row ranges at the beginning, the end and between; the whole tensor if it is small."""
    rows = shape[0]
    step = max(1, SAMPLED_VALUES // int(np.prod(shape[1:])))
    if rows <= step * SAMPLED_PLACES:
        return [(0, rows)]
    starts = np.linspace(0, rows - step, SAMPLED_PLACES).astype(int)
    return [(int(start), int(start) + step) for start in starts]
