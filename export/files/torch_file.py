"""The torch file that Dasheng's authors publish: a dict of "model", the tensors, and "config", the encoder's fields.

Some of their files hold the tensors alone. It is read with `weights_only=True`, which runs no code from the file. A zip
archive, torch's format since 1.6, is mapped; what is older, or was compressed, is read whole.
"""

from __future__ import annotations

import reprlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from dasheng_edge.runtime.errors import CheckpointFileError

from .pointers import POINTER_BYTES, refuse_pointer
from .tensor_files import DTYPES, Source

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Dasheng's own training writes the paths that it was given into "config"; here they are text that looks like a path.
_PATHS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (as_text, f"{module}.{name}")
    for module in ("pathlib", "pathlib._local")
    for as_text, names in ((PurePosixPath, ("PosixPath", "PurePosixPath", "Path")),
                           (PureWindowsPath, ("WindowsPath", "PureWindowsPath")))
    for name in names
]  # fmt: skip
# Weights hardly compress, and a view may hold more values than its storage: what says more than this is no model.
MAX_EXPANSION, SMALL_BYTES = 32, 1 << 24
MAX_CONFIG_VALUES, MAX_CONFIG_NESTING = 10_000, 20
_ENCODER_TENSOR = "patch_embed.proj.weight"  # tells the tensors of a model without a dict around them
_EXPECTED = 'expected the published Dasheng file, {"model": tensors, "config": fields}'


@dataclass(frozen=True)
class TorchSource(Source):
    """A tensor of a torch file."""

    tensor: Tensor = field(repr=False, compare=False)

    def _rows(self, start: int, stop: int) -> Tensor:
        return self.tensor[start:stop].to(torch.float32, copy=True).contiguous()


def read_torch_file(path: Path) -> tuple[dict[str, Any], dict[str, Source]]:
    """Configuration and tensors of a torch file.

    Raises:
        CheckpointFileError: it cannot be read without running code from it, or holds something else.
    """
    try:
        with path.open("rb") as file:
            refuse_pointer(path, file.read(POINTER_BYTES))
        mapped = _can_be_mapped(path)
        with torch.serialization.safe_globals(_PATHS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except CheckpointFileError:
        raise
    except Exception as error:  # a pickle can ask for anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointFileError(
            f"{path} is broken, or is a pickle of other things than tensors, which is not opened ({reason}); "
            f"{_EXPECTED}: download it again, or give the Hugging Face folder of the model"
        ) from error
    tensors, config = _parts(path, content)
    claimed = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    _check_expansion(path, claimed, path.stat().st_size)
    return config, {
        name: TorchSource(path, name, _NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), tensor)
        for name, tensor in tensors.items()
    }


def _can_be_mapped(path: Path) -> bool:
    """Whether a file is an archive whose members lie in it as they are; torch would map compressed ones, too."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False  # torch says what is wrong with it, if anything is
    _check_expansion(path, sum(member.file_size for member in members), path.stat().st_size)
    return all(member.compress_type == zipfile.ZIP_STORED for member in members)


def _check_expansion(path: Path, claimed: int, stored: int) -> None:
    if claimed > max(SMALL_BYTES, MAX_EXPANSION * stored):
        raise CheckpointFileError(
            f"{path} has {stored:,} bytes and says that it holds {claimed:,}, which is no model; {_EXPECTED}: download "
            "it again"
        )


def _parts(path: Path, content: object) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and the configuration, empty where there are only tensors."""
    if isinstance(content, Mapping) and any(str(name).endswith(_ENCODER_TENSOR) for name in content):
        content = {"model": content, "config": {}}
    elif isinstance(content, Mapping) and set(content) == {"model"}:
        content = {**content, "config": {}}
    if not isinstance(content, Mapping) or not {"model", "config"} <= set(content):
        got = f"keys {sorted(map(str, content))[:5]}" if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointFileError(f"{path} holds {got}, {_EXPECTED}; give the Hugging Face folder of the model")
    tensors, config = content["model"], content["config"]
    if not isinstance(tensors, Mapping) or not all(
        isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
        for value in tensors.values()
    ):
        raise CheckpointFileError(f'{path} has no mapping of dense tensors under "model", {_EXPECTED}; save it so')
    if not isinstance(config, Mapping):
        got = type(config).__name__
        raise CheckpointFileError(f'{path} has a {got} under "config", {_EXPECTED}; download it again')
    left = iter(range(MAX_CONFIG_VALUES))
    plain = {str(key): _plain(path, str(key), value, left) for key, value in config.items()}
    return {str(name): tensor for name, tensor in tensors.items()}, plain


def _plain(path: Path, key: str, value: object, left: Iterator[int], depth: int = 0) -> object:
    """A value of the configuration as JSON has it; one pickle can hold a list that holds itself."""
    if isinstance(value, Tensor):
        raise CheckpointFileError(
            f'{path} has a tensor in {key!r} of its "config", expected numbers and text; save it with plain numbers'
        )
    if depth > MAX_CONFIG_NESTING or next(left, None) is None:
        raise CheckpointFileError(
            f'{path} has more in {key!r} of its "config" than a configuration has, expected numbers and text; save it '
            "with plain numbers"
        )
    if isinstance(value, Mapping):
        return {str(inner): _plain(path, key, entry, left, depth + 1) for inner, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(path, key, entry, left, depth + 1) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value) if isinstance(value, PurePath) else reprlib.repr(value)
