"""The torch file that Dasheng's authors publish: a dict of "model", the tensors, and "config", the encoder's fields.

It is read with `weights_only=True`, which runs no code from the file. Of a zip archive, torch's format since 1.6, only
the pickle is read, and rows are when they are asked for; what is older, or was compressed, is read whole.
"""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dasheng_edge.runtime.errors import CheckpointFileError

from .tensor_files import DTYPES, Source, read_values

SUFFIXES = (".pt", ".pth")
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, pickle.UnpicklingError)
_EXPECTED = 'expected the published Dasheng file, {"model": tensors, "config": fields}'


@dataclass(frozen=True)
class TorchSource(Source):
    """A tensor in a torch file that is a zip archive, whose rows are read from the file, not mapped.

    `torch.load(mmap=True)` maps the whole file as memory that could be written to, and what has been read of the
    mapping counts as this process's memory. Of a tensor that is no contiguous one, everything between the first and
    the last value of the rows is read, which may be all of it.
    """

    offset: int  # of the first value, in the file, in bytes
    stride: tuple[int, ...]  # in values

    def rows(self, start: int, stop: int) -> Tensor:
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        shape = (stop - start, *self.shape[1:])
        dtype = DTYPES[self.dtype]
        first = self.offset + start * self.stride[0] * dtype.itemsize
        values = read_values(self.file, dtype, _span(shape, self.stride) * dtype.itemsize, first)
        return values.as_strided(shape, self.stride).to(torch.float32).contiguous()


@dataclass(frozen=True)
class LoadedSource(Source):
    """A tensor of a torch file that was read whole."""

    tensor: Tensor = field(repr=False, compare=False)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.tensor[start:stop].to(torch.float32, copy=True)


def read_torch_file(path: Path) -> tuple[dict[str, Any], dict[str, Source]]:
    """Configuration and tensors of a torch file.

    Raises:
        CheckpointFileError: it cannot be read without running code from it, or holds something else.
    """
    records = _records(path)
    tensors, config = _parts(path, _load(path, "meta" if records else "cpu"))
    if records and not all(_lies_in(records, tensor) for tensor in tensors.values()):
        tensors, _ = _parts(path, _load(path, "cpu"))
    return config, {name: _source(path, name, tensor) for name, tensor in tensors.items()}


def _load(path: Path, where: str) -> object:
    """What a torch file holds, its tensors on the device `where`; the device "meta" has no values."""
    try:
        return torch.load(path, map_location=where, weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointFileError(
            f"{path} is broken, or is a pickle of other things than tensors, which is not opened ({reason}); "
            f"{_EXPECTED}: download it again, or give the Hugging Face folder of the model"
        ) from error


def _records(path: Path) -> dict[int, int]:
    """Where the data of a zip archive's members begin, and how long they are, in bytes.

    Empty where they cannot be read as they lie there: the file is no archive, is compressed, or has its values in
    another byte order.
    """
    found = {}
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile):
        return {}  # torch says what is wrong with it, if anything is
    with archive, path.open("rb") as file:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                return {}
            if member.filename.endswith("/byteorder") and archive.read(member) != sys.byteorder.encode():
                return {}
            # A local header: 26 bytes, the lengths of the name and of an extra field, two bytes each, and those.
            file.seek(member.header_offset + 26)
            lengths = file.read(4)
            name, extra = int.from_bytes(lengths[:2], "little"), int.from_bytes(lengths[2:], "little")
            found[member.header_offset + 30 + name + extra] = member.file_size
    return found


def _parts(path: Path, content: object) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and the configuration."""
    if not isinstance(content, Mapping) or not {"model", "config"} <= set(content):
        got = f"keys {sorted(map(str, content))[:5]}" if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointFileError(f"{path} holds {got}, {_EXPECTED}; give the Hugging Face folder of the model")
    tensors, config = content["model"], content["config"]
    if not isinstance(tensors, Mapping) or not all(
        isinstance(value, Tensor) and value.layout is torch.strided for value in tensors.values()
    ):
        raise CheckpointFileError(f'{path} has no mapping of dense tensors under "model", {_EXPECTED}; save it so')
    if not isinstance(config, Mapping):
        got = type(config).__name__
        raise CheckpointFileError(f'{path} has a {got} under "config", {_EXPECTED}; download it again')
    if odd := [key for key, value in config.items() if _holds_tensor(value)]:
        raise CheckpointFileError(
            f'{path} has a tensor in {odd[0]!r} of its "config", expected numbers and text; save it with plain numbers'
        )
    return {str(name): tensor for name, tensor in tensors.items()}, dict(config)


def _holds_tensor(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensor, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(_holds_tensor, value))
    return isinstance(value, Tensor)


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Values from the first to the last of a tensor, in its storage."""
    return 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def _lies_in(records: Mapping[int, int], tensor: Tensor) -> bool:
    """Whether torch's statement where a tensor lies is that of the archive's directory."""
    offset = _storage_offset(tensor)
    end = tensor.storage_offset() + _span(tuple(tensor.shape), tensor.stride())
    return end * tensor.itemsize <= records.get(offset, -1)


def _storage_offset(tensor: Tensor) -> int:
    """Where in the file the storage of a tensor begins that was loaded without its data; -1 where torch does not say.

    PyTorch's tutorial on GPUDirect Storage reads the attribute so; it computes it from how it writes such archives,
    and may be wrong for those that another program packed.
    """
    return int(getattr(tensor.untyped_storage(), "_checkpoint_offset", -1))


def _source(path: Path, name: str, tensor: Tensor) -> Source:
    dtype, shape = _NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape)
    if not tensor.is_meta:
        return LoadedSource(path, name, dtype, shape, tensor)
    first = _storage_offset(tensor) + tensor.storage_offset() * tensor.itemsize
    return TorchSource(path, name, dtype, shape, int(first), tensor.stride())
