"""The importance matrix that `quantize --save-imatrix FILE` keeps."""

from __future__ import annotations

import shutil
from pathlib import Path

from dasheng_edge.runtime.atomic_output import PartialOutput
from dasheng_edge.runtime.errors import ClipsError, OutputExistsError

from .imatrix_file import read_imatrix


class KeptImatrix:
    """Where `--save-imatrix` goes: under its name only when the bundle is finished.

    Raises:
        OutputExistsError: something is there that is no importance matrix, or may not be overwritten; or the place lies
            in one of the bundles.
        OutputWriteError: it cannot be written.
    """

    def __init__(self, path: Path | None, source: Path, out: Path, *, overwrite: bool) -> None:
        self._partial: PartialOutput | None = None
        if path is None:
            return
        for folder in (source, out):
            if path.resolve().is_relative_to(folder.resolve()):
                raise OutputExistsError(f"{path} lies in the bundle {folder}; choose another --save-imatrix")
        self._partial = PartialOutput(
            path, overwrite=overwrite, what="an importance matrix", why_not=_why_no_imatrix,
            option="--save-imatrix",
        )  # fmt: skip

    def __enter__(self) -> KeptImatrix:
        if self._partial is not None:
            self._partial.open(folder=False)
        return self

    def take(self, path: Path) -> None:
        """Copy what was measured."""
        if self._partial is not None:
            with self._partial.write_errors():
                shutil.copyfile(path, self._partial.path)

    def move(self) -> None:
        """Give it its name."""
        if self._partial is not None:
            with self._partial.write_errors():
                self._partial.move()

    def __exit__(self, *_: object) -> None:
        if self._partial is not None:
            self._partial.discard()


def _why_no_imatrix(path: Path) -> str:
    try:
        read_imatrix(path)
    except ClipsError as error:
        return str(error)
    return ""
