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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last where brackets are nested too deep
        raise CheckpointFileError(f"cannot read {path}: {error}; download or copy it again") from error
    if not isinstance(content, dict):
        raise CheckpointFileError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


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
