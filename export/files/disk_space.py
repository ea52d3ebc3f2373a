"""Whether what an output needs fits on its disk, before it is begun."""

from __future__ import annotations

import shutil
from pathlib import Path

from dasheng_edge.runtime.errors import OutputWriteError


def check_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Refuse what will not fit on the disk of `folder`; `what` needs it, as in "the export needs about".

    Raises:
        OutputWriteError: there is less free space than needed.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OutputWriteError(
            f"{what} {size_in_words(needed_bytes)}, and {size_in_words(free)} are free on the disk of {folder}; "
            "free some space or choose another --out"
        )


def size_in_words(amount_bytes: int) -> str:
    """A size in the unit that leaves digits in front of the point."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if amount_bytes >= unit), (1e3, "kB"))
    return f"{amount_bytes / unit:,.1f} {name}"
