"""The importance matrix that `quantize --save-imatrix FILE` stores."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from dasheng_edge.runtime.atomic_output import PartialOutput
from dasheng_edge.runtime.errors import ClipsError, OutputExistsError

from .imatrix_file import read_imatrix


@contextmanager
def saved_imatrix(
    path: Path | None, bundles: tuple[Path, ...], *, overwrite: bool
) -> Generator[Callable[[Path], None]]:
    """What copies a measured file to `path`, which gets its name when the block ends without an error.

    Raises:
        OutputExistsError: something is there that is no importance matrix, or may not be overwritten; or the place lies
            in one of the bundles.
        OutputWriteError: it cannot be written.
    """
    if path is None:
        yield lambda _: None
        return
    for folder in bundles:
        if path.resolve().is_relative_to(folder.resolve()):
            raise OutputExistsError(f"{path} lies in the bundle {folder}; choose another --save-imatrix")
    output = PartialOutput(
        path, overwrite=overwrite, what="an importance matrix", why_not=_why_no_imatrix, option="--save-imatrix"
    )

    def save(measured: Path) -> None:
        with output.write_errors():
            shutil.copyfile(measured, output.path)

    output.open(folder=False)
    try:
        yield save
        with output.write_errors():
            output.move()
    finally:
        output.discard()


def _why_no_imatrix(path: Path) -> str:
    try:
        read_imatrix(path)
    except ClipsError as error:
        return str(error)
    return ""
