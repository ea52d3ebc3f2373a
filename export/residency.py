"""Keeps the pages of a mapped file from piling up in this process while somebody else reads it.

llama.cpp maps a model file whole and asks for all of it at once. The pages are clean and the system could take
them back, but until it does they count as this process's memory, and a container or a small board may end it
for that. Where the system is Linux, a thread hands them back again and again; who needs one gets it from the
system's cache.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

INTERVAL_S = 0.02  # a load reads about 100 MB in this time
_DONTNEED = 4  # MADV_DONTNEED of Linux: drops clean pages of a file's mapping, which stays valid
_MAPS = Path("/proc/self/maps")


@contextmanager
def few_mapped_pages(path: Path) -> Generator[None]:
    """While the block runs, pages of `path` that this process has mapped are handed back; no-op but on Linux."""
    if not sys.platform.startswith("linux"):
        yield
        return
    done = threading.Event()
    target = path.resolve()
    libc = ctypes.CDLL(None)

    def hand_back() -> None:
        while not done.wait(INTERVAL_S):
            for start, size in mapped_ranges(target):
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _DONTNEED)

    thread = threading.Thread(target=hand_back, name="few-mapped-pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def mapped_ranges(path: Path) -> list[tuple[int, int]]:
    """Read-only shared mappings of a file in this process: (address, bytes). A private one may hold changes."""
    ranges = []
    for line in _MAPS.read_text("utf-8", "surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == str(path) and fields[1] == "r--s":
            start, stop = (int(address, 16) for address in fields[0].split("-"))
            ranges.append((start, stop - start))
    return ranges
