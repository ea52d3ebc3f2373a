"""The torch file that Dasheng's authors publish: a dict of "model", the tensors, and "config", the encoder's fields.

It is read with `weights_only=True`, which runs no code from the file, and mapped rather than read where its
format allows that (a zip archive, torch's since 1.6).
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

from .tensor_files import Source

SUFFIXES = (".pt", ".pth")
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, pickle.UnpicklingError)


@dataclass(frozen=True)
class TorchSource(Source):
    """A tensor of a torch file; its pages are read when rows are."""

    tensor: Tensor = field(repr=False, compare=False)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.tensor[start:stop].to(torch.float32, copy=True)


def read_torch_file(path: Path) -> tuple[dict[str, Any], dict[str, Source]]:
    """Configuration and tensors of a torch file.

    Raises:
        CheckpointFileError: it cannot be read without running code from it, or holds something else.
    """
    expected = 'expected the published Dasheng file, {"model": tensors, "config": fields}'
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointFileError(
            f"{path} is broken, or is a pickle of other things than tensors, which is not opened ({reason}); "
            f"{expected}: download it again, or give the Hugging Face folder of the model"
        ) from error
    if not isinstance(content, Mapping) or not {"model", "config"} <= set(content):
        got = f"keys {sorted(map(str, content))[:5]}" if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointFileError(f"{path} holds {got}, {expected}; give the Hugging Face folder of the model")
    tensors, config = content["model"], content["config"]
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointFileError(f'{path} has no mapping of tensors under "model", {expected}; download it again')
    if not isinstance(config, Mapping):
        raise CheckpointFileError(f'{path} has a {type(config).__name__} under "config", {expected}; download it again')
    return dict(config), {
        str(name): TorchSource(path, str(name), _DTYPES.get(value.dtype, str(value.dtype)), tuple(value.shape), value)
        for name, value in tensors.items()
    }
