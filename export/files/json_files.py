"""JSON side files, checked as they are read: only the fields that are used, others ignored."""

from __future__ import annotations

import json
import re
import reprlib
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dasheng_edge.runtime.errors import CheckpointFileError

from .pointers import POINTER_BYTES, refuse_pointer

MAX_BYTES = 1 << 28  # the largest, tokenizer.json, has 20 MB
MAX_NESTING = 100  # of objects and lists in each other: side files have 10, and what walks through them is recursive
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape that may stand alone, and is no text then


_AGAIN = "download or copy it again"


class StatedFields(BaseModel):
    """The fields of a side file that are used."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


def read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """A JSON object from a side file; empty when it may be missing and is."""
    if missing_ok and not path.exists() and not path.is_symlink():
        return {}  # a link to nothing is no absent file: it is what remains of one in the hub's cache
    return json_object(read_side_file(path), str(path), _AGAIN)


def read_side_file(path: Path) -> bytes:
    """The content of a small file.

    Raises:
        CheckpointFileError: it cannot be read, is no file, or is too large to be one of a checkpoint.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise CheckpointFileError(f"cannot read {path}: it is no regular file; {_AGAIN}")
        if status.st_size > MAX_BYTES:
            raise CheckpointFileError(
                f"cannot read {path}: it has {status.st_size:,} bytes, expected at most {MAX_BYTES:,}; {_AGAIN}"
            )
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointFileError(f"cannot read {path}: {error}; {_AGAIN}") from error
    refuse_pointer(path, content[:POINTER_BYTES])
    return content


def json_object(content: bytes, where: str, fix: str) -> dict[str, Any]:
    """The JSON object that bytes are, with or without a byte order mark.

    Raises:
        CheckpointFileError: they are no JSON, or no object, or one that is nested too deep.
    """
    try:
        parsed = json.loads(content)
        if _HALF_CHARACTER.search(content):
            json.dumps(parsed, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # the latter where brackets are nested too deep
        raise CheckpointFileError(f"cannot read {where}: {error}; {fix}") from error
    if not isinstance(parsed, dict):
        raise CheckpointFileError(f"{where} holds a {type(parsed).__name__}, expected a JSON object; {fix}")
    level: list[object] = [parsed]
    for _ in range(MAX_NESTING):
        level = [inner for outer in level for inner in _values(outer) if isinstance(inner, (dict, list))]
    if level:
        raise CheckpointFileError(
            f"cannot read {where}: its brackets are nested more than {MAX_NESTING} deep, which no such file has; {fix}"
        )
    return parsed


def _values(container: object) -> Iterable[object]:
    return container.values() if isinstance(container, dict) else container if isinstance(container, list) else ()


Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], where: str, stated: object, fix: str) -> Model:
    """What a side file states at `where`, as a model.

    Raises:
        CheckpointFileError: a field is missing or is not what it should be; the first such is named.
    """
    try:
        return model.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        field = ": ".join((where, ".".join(map(str, first["loc"])))) if first["loc"] else where
        if first["type"] == "missing":
            raise CheckpointFileError(f"{field} is missing; {fix}") from error
        expected = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        if first["type"] == "model_type":
            expected = "expected a JSON object"
        raise CheckpointFileError(f"{field} is {reprlib.repr(first['input'])}, {expected}; {fix}") from error
