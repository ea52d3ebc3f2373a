"""Captions audio, answers questions about it and embeds it, offline: `dasheng_edge.runtime` is where to start.

This folder is the package `dasheng_edge` itself. A folder of that name in the repository root would hide the installed
package from a Python that starts there.
"""

from __future__ import annotations

__version__: str  # by `__getattr__`


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("dasheng-edge")


def __dir__() -> list[str]:
    return [*globals(), "__version__"]
