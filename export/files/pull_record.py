"""The file that `dasheng-edge pull` leaves in a folder: where its files are from."""

from __future__ import annotations

from pathlib import Path

from .json_files import StatedFields, checked, read_json

PULL_RECORD = ".dasheng-edge.json"


class Origin(StatedFields):
    """Where a checkpoint or an adapter was downloaded from."""

    repo: str  # "owner/name"
    revision: str  # a commit


def read_origin(folder: Path) -> Origin | None:
    """Where a checkpoint or an adapter was pulled from, if it was.

    Raises:
        CheckpointFileError: the record of that is broken.
    """
    path = folder / PULL_RECORD
    if not path.is_file():
        return None
    return checked(Origin, str(path), read_json(path), "remove it, or pull again what is beside it")
