"""Goes through cases and says what became of each: `python -m tests.fuzz.worker KIND SEED FIRST STOP STEP`.

A line of JSON on stdout when a case begins and when it ends, so that the parent knows which one ended the process.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from dasheng_edge.runtime.errors import DashengEdgeError

from .case import Case, Maker, WrongAnswerError
from .mutate import Rng

MAX_ADDRESS_BYTES = 12 << 30  # far more than any case needs; an allocation of terabytes fails at once
RSS_EVERY = 100  # cases from one report of the memory to the next


def maker(kind: str) -> Maker:
    """The function that makes cases of a kind; each loads what it needs."""
    if kind == "audio":
        from .audio_cases import audio as make
    elif kind == "commands":
        from .command_cases import commands as make
    elif kind == "bundles":
        from .bundle_cases import bundles as make
    elif kind == "caches":
        from .bundle_cases import caches as make
    else:
        from .checkpoint_cases import checkpoints as make
    return make


def generator(kind: str, seed: int, number: int) -> Rng:
    """Decides all about one case, independently of those before it."""
    return np.random.default_rng([seed, crc32(kind.encode()), number])


def outcome(case: Case) -> dict[str, Any]:
    """What became of a case: taken, refused, wrong or raw."""
    try:
        case.use()
    except DashengEdgeError as error:
        return {"outcome": "refused", "error": type(error).__name__}
    except WrongAnswerError as error:
        return {"outcome": "wrong", "error": str(error)}
    except BaseException as error:  # noqa: BLE001  # that is what is looked for
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return {"outcome": "raw", "error": f"{type(error).__name__} at {where}: {str(error)[:200]}"}
    return {"outcome": "taken"}


def resident_bytes() -> int:
    """Of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def main() -> None:
    """Go through the cases of the command line."""
    kind, (seed, first, stop, step) = sys.argv[1], map(int, sys.argv[2:6])
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_BYTES, MAX_ADDRESS_BYTES))
    os.environ |= {"DASHENG_EDGE_CACHE": "off", "GGML_NO_BACKTRACE": "1"}
    with os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace") as told:
        os.dup2(2, 1)  # what is printed, by C libraries too, goes to stderr
        make = maker(kind)
        for done, number in enumerate(range(first, stop, step)):
            with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
                case = make(generator(kind, seed, number), Path(folder))
                print(json.dumps({"number": number, "what": case.what, "limit_s": case.limit_s}), file=told, flush=True)
                end = outcome(case)
            if done % RSS_EVERY == 0:
                end["rss"] = resident_bytes()
            print(json.dumps(end), file=told, flush=True)


if __name__ == "__main__":
    main()
