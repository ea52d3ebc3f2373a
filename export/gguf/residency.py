"""Keeps the pages of a large mapped file from piling up in this process while somebody else reads it.

llama.cpp maps a model file whole and asks for all of it at once. The pages are clean and the system could take
them back, but until it does they count as this process's memory, and a container or a small board may end it
for that. On Linux, a thread hands them back again and again; who reads a page again gets it from the
system's cache.

Handing back is harmless as long as the file is mapped there. Should it be unmapped between the look at the map and
the call, somebody else's memory could lie there and would be lost. So callers name the part of the file that
stays mapped, and unmap it only behind the block.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

INTERVAL_S = 0.02  # a load reads about 100 MB in this time
SMALL_BYTES = 1 << 30  # of a file that may stay in memory
_DONTNEED = 4  # MADV_DONTNEED of Linux: drops clean pages of a file's mapping, which stays valid
_MAPS = Path("/proc/self/maps")


@contextmanager
def pages_handed_back(path: Path, start: int, stop: int) -> Generator[None]:
    """While the block runs, mapped pages of bytes [start, stop) of `path` are handed back.

    They must stay mapped while it runs, or until an error ends it. Nothing happens for small parts, and but on Linux.
    """
    if not sys.platform.startswith("linux") or stop - start < SMALL_BYTES:
        yield
        return
    done = threading.Event()
    target = path.resolve()
    libc = ctypes.CDLL(None)

    def hand_back() -> None:
        while not done.wait(INTERVAL_S):
            for address, size in mapped_ranges(target, start, stop):
                libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _DONTNEED)

    thread = threading.Thread(target=hand_back, name="pages-handed-back", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def mapped_ranges(path: Path, start: int, stop: int) -> list[tuple[int, int]]:
    """Where whole pages of bytes [start, stop) of a file are mapped in this process: (address, bytes).

    Only read-only shared mappings: a private one may hold changes.
    """
    page = mmap.PAGESIZE
    ranges = []
    for line in _MAPS.read_text("utf-8", "surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == str(path) and fields[1] == "r--s":
            address, end = (int(value, 16) for value in fields[0].split("-"))
            offset = int(fields[2], 16)  # in the file, of the first byte
            first = max(-(-start // page) * page, offset)
            last = min(stop // page * page, offset + end - address)
            if first < last:
                ranges.append((address + first - offset, last - first))
    return ranges
