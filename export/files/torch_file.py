"""The torch file that Dasheng's authors publish: a dict of "model", the tensors, and "config", the encoder's fields.

It is read with `weights_only=True`, which runs no code from the file. A zip archive, torch's format since 1.6, is
mapped; what is older, or was compressed, is read whole.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dasheng_edge.runtime.errors import CheckpointFileError

from .tensor_files import DTYPES, Source

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, pickle.UnpicklingError)
_EXPECTED = 'expected the published Dasheng file, {"model": tensors, "config": fields}'


@dataclass(frozen=True)
class TorchSource(Source):
    """A tensor of a torch file."""

    tensor: Tensor = field(repr=False, compare=False)

    def rows(self, start: int, stop: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.tensor[start:stop].to(torch.float32, copy=True).contiguous().to(dtype)


def read_torch_file(path: Path) -> tuple[dict[str, Any], dict[str, Source]]:
    """Configuration and tensors of a torch file.

    Raises:
        CheckpointFileError: it cannot be read without running code from it, or holds something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointFileError(
            f"{path} is broken, or is a pickle of other things than tensors, which is not opened ({reason}); "
            f"{_EXPECTED}: download it again, or give the Hugging Face folder of the model"
        ) from error
    tensors, config = _parts(path, content)
    return config, {
        name: TorchSource(path, name, _NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), tensor)
        for name, tensor in tensors.items()
    }


def _can_be_mapped(path: Path) -> bool:
    """Whether a file is an archive whose members lie in it as they are; torch would map compressed ones, too."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    except (OSError, zipfile.BadZipFile):
        return False  # torch says what is wrong with it, if anything is


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
