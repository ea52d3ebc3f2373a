"""Where tensors are stored, and how they are read: one at a time, in blocks of rows, as float32."""

from __future__ import annotations

import json
import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dasheng_edge.runtime.errors import CheckpointFileError

from .json_files import read_json
from .names import SHARD
from .pointers import POINTER_BYTES, refuse_pointer

DTYPES = {  # by safetensors' names
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
BLOCK_BYTES = 256 << 20  # of float32: how much of a tensor is in memory at a time


@dataclass(frozen=True)
class Source(ABC):
    """Where a tensor is stored."""

    file: Path
    name: str  # in the file
    dtype: str  # safetensors' name: "F32", "BF16" ...
    shape: tuple[int, ...]

    def rows(self, start: int, stop: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows [start, stop) as a copy: as float32 holds them, in a floating-point type.

        Raises:
            CheckpointFileError: one of them holds NaN or infinity.
        """
        values = self._rows(start, stop)
        # A sum of finite values may be infinite, but none that is finite has NaN or infinity in it; it takes no memory.
        if not math.isfinite(float(values.sum())) and not (finite := torch.isfinite(values)).all():
            odd = (~finite).nonzero()
            first = [int(odd[0, 0]) + slice(start, stop).indices(self.shape[0])[0], *odd[0, 1:].tolist()]
            raise CheckpointFileError(
                f"{self.file} holds NaN or infinity in {self.name}, first at {first} ({len(odd):,} of the "
                f"{values.numel():,} values looked at); expected finite weights: copy it again, or take an earlier "
                "step of its training"
            )
        return values.to(dtype)

    @abstractmethod
    def _rows(self, start: int, stop: int) -> Tensor:
        """The same in float32, whatever they hold."""


@dataclass(frozen=True)
class SafetensorsSource(Source):
    """A tensor in a safetensors file, whose rows are read from the file, not mapped.

    `safe_open` maps the whole file as memory that could be written to, which a machine with less memory than the
    file has bytes refuses; and what it has read of the mapping counts as this process's memory.
    """

    offset: int  # of the first byte, in the file

    def _rows(self, start: int, stop: int) -> Tensor:
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        stored = DTYPES[self.dtype]
        row_bytes = stored.itemsize * torch.Size(self.shape[1:]).numel()
        values = read_values(self.file, stored, (stop - start) * row_bytes, self.offset + start * row_bytes)
        return values.reshape(stop - start, *self.shape[1:]).to(torch.float32)


def read_values(file: Path, dtype: torch.dtype, size: int, offset: int) -> Tensor:
    """`size` bytes of a file from `offset` on, as values of a type, [values]."""
    if not size:
        return torch.empty(0, dtype=dtype)  # no bytes have no stride that another type could be seen through
    return torch.from_numpy(np.fromfile(file, np.uint8, size, offset=offset)).view(dtype)


def row_blocks(shape: tuple[int, ...], block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
    """Half-open row ranges of at most `block_bytes` of float32 each, at least one row."""
    row_bytes = 4 * torch.Size(shape[1:]).numel()
    step = max(1, block_bytes // max(1, row_bytes))
    return ((start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def equal_tensors(one: Source, other: Source) -> bool:
    """Whether two tensors hold the same values, block by block; the first block that differs ends it."""
    return one.shape == other.shape and all(
        torch.equal(one.rows(*block), other.rows(*block)) for block in row_blocks(one.shape)
    )


def read_header(path: Path) -> dict[str, Source]:
    """All tensors of a safetensors file by name.

    The format: eight bytes for the length of a JSON header, the header, the data that its offsets count from.

    Raises:
        CheckpointFileError: it is truncated or no safetensors file.
    """
    with path.open("rb") as file:
        refuse_pointer(path, file.read(POINTER_BYTES))
    try:
        with safe_open(path, framework="np"):
            pass  # the library checks the header, and that the data are as long as it says
    except (SafetensorError, OSError) as error:
        raise CheckpointFileError(
            f"{path} is truncated or not safetensors ({path.stat().st_size} bytes: {error}); download or copy it again"
        ) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: SafetensorsSource(
            path, name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
        )
        for name, entry in header.items()
    }


def read_shards(index: Path) -> dict[str, Source]:
    """All tensors by their stored names, each from the shard that an index says it is in, in the index's order.

    Raises:
        CheckpointFileError: the index or a shard is not what it should be.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointFileError(f"{index} has no weight_map; download it again")
    for file in weight_map.values():
        if not isinstance(file, str) or not SHARD.fullmatch(file):
            raise CheckpointFileError(
                f"{index} names {reprlib.repr(file)}, expected a file name inside the folder, NAME.safetensors"
            )
    headers: dict[str, dict[str, Source]] = {}
    for file in dict.fromkeys(weight_map.values()):
        if not (index.parent / file).is_file():
            raise CheckpointFileError(
                f"{index.parent / file} is missing, the index lists it; download the checkpoint again"
            )
        headers[file] = read_header(index.parent / file)
    if absent := [name for name, file in weight_map.items() if name not in headers[file]]:
        raise CheckpointFileError(
            f"{index} says that {weight_map[absent[0]]} holds {absent[0]}, which it does not "
            f"({len(absent)} such tensors); download index and shards again, from one revision"
        )
    return {name: headers[file][name] for name, file in weight_map.items()}
