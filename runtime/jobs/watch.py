"""Files that arrive in folders, once they are complete."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .index import Index, digest
from .inputs import Input

POLL_S = 1.0
SETTLED_S = 2.0  # for so long, a file must not have changed
# What programs call files that they still write: Chromium, Firefox, rsync, wget and many others. Such endings are no
# audio's; these stand before an ending of audio, or before the name.
_TEMPORARY = re.compile(r"^[.~]|\.(part|partial|tmp|temp|crdownload|download|filepart|incomplete)(\.|$)", re.IGNORECASE)


def arrivals(
    inputs: Iterable[Input],
    *,
    poll_s: float = POLL_S,
    settled_s: float = SETTLED_S,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.time,
) -> Iterator[list[Input]]:
    """Again and again, those inputs that are complete and new, or were changed since; for ever.

    A file is complete if it is not empty and neither its size nor its time has changed for `settled_s` while it was
    looked at, or since long before. Files with temporary names wait for their final ones.
    """
    seen: dict[str, tuple[int, int]] = {}  # size and time, by sources
    given = Index()  # digests of the same
    since: dict[str, float] = {}  # when it was first seen as it is
    while True:
        there: list[Input] = []
        for item in inputs:
            if item.error is not None or _TEMPORARY.search(Path(item.path).name):
                continue
            try:
                found = Path(item.path).stat()
            except (OSError, ValueError):  # it went away again
                continue
            mark = found.st_size, found.st_mtime_ns
            if given[item.source] == digest(repr(mark)):
                continue
            if seen.get(item.source) != mark:
                seen[item.source], since[item.source] = mark, now()
            age_s = now() - max(found.st_mtime, found.st_ctime)
            if found.st_size and (age_s >= settled_s or now() - since[item.source] >= settled_s):
                there.append(item)
                given[item.source] = digest(repr(mark))
                del seen[item.source], since[item.source]
        if there:
            yield there
        else:
            sleep(poll_s)
