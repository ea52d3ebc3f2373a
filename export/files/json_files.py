"""JSON side files, checked as they are read: only the fields that are used, others ignored."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dasheng_edge.runtime.errors import CheckpointFileError


class StatedFields(BaseModel):
    """The fields of a side file that are used."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


def read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """A JSON object from a side file; empty when it may be missing and is."""
    if missing_ok and not path.exists() and not path.is_symlink():
        return {}  # a link to nothing is no absent file: it is what remains of one in the hub's cache
    again = "download or copy it again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointFileError(f"cannot read {path}: {error}; {again}") from error
    return json_object(content, str(path), again)


def json_object(content: bytes, where: str, fix: str) -> dict[str, Any]:
    """The JSON object that bytes are.

    Raises:
        CheckpointFileError: they are no JSON, or no object.
    """
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:  # the latter where brackets are nested too deep
        raise CheckpointFileError(f"cannot read {where}: {error}; {fix}") from error
    if not isinstance(parsed, dict):
        raise CheckpointFileError(f"{where} holds a {type(parsed).__name__}, expected a JSON object; {fix}")
    return parsed


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
