"""Memory that this process can still get, asked before an engine takes it, since llama.cpp ends the process without.

Two questions. Whether the system hands out so many addresses (`ulimit -v`, `-d`, strict overcommit) is found by taking
them for a moment. Whether there is anything to fill them with (memory and swap of the machine, limits of control
groups) is counted as if every page of a file could go. So what is refused would have failed or been killed; what
`MemAvailable` calls scarce, but is not hopeless, is tried.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import re
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dasheng_edge.runtime.errors import DashengEdgeError, MemoryShortError

MARGIN_BYTES = 24 << 20  # for all that is small beside what is counted: a decode of a 7B takes 9 MB, Python the rest
STACK_BYTES = 8 << 20  # of a thread, where nobody says otherwise
_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")
_LIMITS = Path("/proc/self/limits")
_PAGES = Path("/proc/self/smaps")
# Parts that may not be written to, of libraries that stay loaded for good: begin and end.
_LIBRARY = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) r-[x-]p .*(?:/(?:onnxruntime|llama_cpp|av|av\.libs|numpy|numpy\.libs|pydantic_core)/"
    r"|/lib(?:python|crypto|ssl|sqlite3|stdc\+\+)[^/]*$)"
)
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_FREE = ("MemFree", "Buffers", "Cached", "SReclaimable", "SwapFree")
# How ONNX Runtime, llama.cpp, the C library and its loader say it. "in static TLS block" is about something else.
_SAID = re.compile(
    r"bad[_ ]alloc|(failed|unable) to (allocate|map segment)|cannot allocate memory(?! in static)|out of memory"
    r"|not enough memory|insufficient memory",
    re.IGNORECASE,
)


def require(what: str, fix: str, *, own: int = 0, mapped: int = 0) -> None:
    """Refuse what will not fit: `own` bytes that are filled, and `mapped` bytes of files or that stay empty.

    Raises:
        MemoryShortError: they cannot be had; `what` needs them, and `fix` says how to need less.
    """
    if _fits(own, mapped):
        return
    release_freed_memory()  # which counts as taken
    if _fits(own, mapped):
        return
    addresses = own + mapped + MARGIN_BYTES
    left = room_bytes()
    there = ", which this process cannot get" if left is None else f", {left / 1e6:.0f} MB are left"
    raise MemoryShortError(f"{what} needs about {addresses / 1e6:.0f} MB of memory{there}: {fix}")


@contextmanager
def memory_errors(what: str, fix: str) -> Generator[None]:
    """Whatever fails within for lack of memory, in whatever words, is a MemoryShortError.

    Raises:
        MemoryShortError: memory is short; other errors as they are.
    """
    try:
        yield
    except MemoryShortError:
        raise
    except Exception as error:
        if (why := short_of_memory(error)) is None:
            raise
        raise MemoryShortError(f"there is not enough memory for {what} ({why}): {fix}") from error


def started_thread(name: str, work: Callable[[], object]) -> threading.Thread:
    """A thread of ours that runs. Python waits for ever for one that has no memory to begin, so that is asked before.

    Raises:
        MemoryShortError: there is not enough memory, or there are too many threads.
    """
    fix = "free memory, or raise the limits of memory and of processes (ulimit -v, -u)"
    require("a thread", fix, mapped=STACK_BYTES)
    thread = threading.Thread(target=work, name=f"dasheng-edge {name}", daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        raise MemoryShortError(f"cannot start a thread ({str(error) or 'out of memory'}): {fix}") from error
    return thread


def short_of_memory(error: BaseException) -> str | None:
    """What an error says if lack of memory is behind it; else None."""
    text = " ".join(str(error).split())[:200]
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return text or "out of memory"
    ours = isinstance(error, DashengEdgeError)  # whose text holds names of files and what users wrote
    cause = error.__cause__ if ours else None
    return short_of_memory(cause) if cause else text if not ours and says_memory(text) else None


def says_memory(text: str) -> bool:
    """Whether a library's words are about a lack of memory."""
    return _SAID.search(text) is not None


def release_freed_memory() -> None:
    """Give memory that was freed back to the system; glibc keeps, of graphs that were read, as much as they have."""
    with suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def release_read_pages() -> None:
    """Give back what was read of ONNX Runtime, FFmpeg and their kind: most of it ran once, to start them.

    The system has it in their files, and takes it last where memory is short. What runs again is found again, without a
    disk, in less than a microsecond a page. 30 to 50 MB of a process with both engines.
    """
    with suppress(OSError, AttributeError, TypeError, ValueError):  # not Linux
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        with _PAGES.open(encoding="utf-8", errors="replace") as lines:
            part = None
            for line in lines:
                if line[0] in "0123456789abcdef":
                    part = _LIBRARY.match(line.rstrip())
                elif part is not None and line.split() == ["Anonymous:", "0", "kB"]:  # else it has what no file has
                    begin, end = (int(address, 16) for address in part.groups())
                    advise(begin, end - begin, mmap.MADV_DONTNEED)


def _fits(own: int, mapped: int) -> bool:
    if not _can_map(own + MARGIN_BYTES) or (mapped and not _can_map(own + mapped + MARGIN_BYTES, filled=False)):
        return False
    left = free_bytes() if own else None  # reading files costs more than asking for addresses
    return left is None or own <= left


def _can_map(size: int, *, filled: bool = True) -> bool:
    """Whether the system hands out so many addresses now, for memory that will be filled or only read."""
    try:
        if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
            mmap.mmap(-1, size).close()
            return True
        access = mmap.PROT_READ | (mmap.PROT_WRITE if filled else 0)
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=access).close()
    except (OSError, OverflowError, ValueError):
        return False
    return True


def room_bytes() -> int | None:
    """What this process can get of memory and of addresses, whichever is less; None where the system tells neither."""
    return min((size for size in (free_bytes(), _addresses_left()) if size is not None), default=None)


def free_bytes() -> int | None:
    """Bytes that can be filled at most, were every page of a file dropped; None where the system does not tell."""
    try:
        facts = _sizes(_MEMINFO)
        swap = facts["SwapFree"]
        machine = sum(facts.get(name, 0) for name in _FREE) - facts.get("Shmem", 0)
    except (OSError, KeyError, ValueError):
        return None
    return max(0, min([machine, *(left + swap for left in _groups_left())]))


def _addresses_left() -> int | None:
    """Bytes of addresses below this process's limit; None where there is none or the system does not tell."""
    try:
        limit = re.search(r"Max address space\s+(\d+)", _LIMITS.read_text("utf-8"))
        return int(limit[1]) - _sizes(_STATUS)["VmSize"] if limit else None
    except (OSError, KeyError, ValueError):
        return None


def _sizes(path: Path) -> dict[str, int]:
    """What a file of /proc says in kB, as bytes."""
    found = re.findall(r"^(\w+):\s*(\d+) kB$", path.read_text("utf-8", "replace"), re.MULTILINE)
    return {name: int(size) << 10 for name, size in found}


def _groups_left() -> Iterator[int]:
    """Bytes below the limit of each control group that this process is in, versions 1 and 2."""
    try:
        lines = _OWN_GROUPS.read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        root = _GROUPS / "memory" if kinds else _GROUPS
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root) and (left := _group_left(folder, first=bool(kinds))) is not None:
                yield left


def _group_left(folder: Path, *, first: bool) -> int | None:
    limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if first else ("memory.max", "memory.current")
    files = ("total_inactive_file", "total_active_file") if first else ("inactive_file", "active_file")
    try:
        limit_bytes = int((folder / limit).read_text("ascii"))  # "max" is no number
        facts = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
        return limit_bytes - int((folder / used).read_text("ascii")) + sum(int(facts.get(name, 0)) for name in files)
    except (OSError, ValueError):  # as where the root has none, or a container does not show its own
        return None
