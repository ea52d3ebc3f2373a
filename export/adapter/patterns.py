"""The regular expressions of an adapter, tried on the modules that they are for in a process that can be ended.

Python's engine backtracks, without end where a pattern is made for it, and cannot be interrupted by another thread.
Patterns that come through here in time can be given to peft, which matches the same again.
"""

from __future__ import annotations

import json
import re
import reprlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from dasheng_edge.runtime.errors import AdapterError

from .config import LoraFacts

LIMIT_S = 10.0  # those of mdl-toolkit and ms-swift take milliseconds
_NAMES = re.compile(r"[\w.-]*", re.ASCII)  # taken for expressions, these cannot but match in time
# Says which pattern comes next. Its stack is smaller than that of this process, where peft compiles them again.
_CHILD = """
import json, re, sys
sys.setrecursionlimit(400)
patterns, modules = json.loads(sys.stdin.buffer.read())
for number, (how, pattern) in enumerate(patterns):
    print(number, flush=True)
    match = getattr(re.compile(pattern), how)
    for module in modules:
        match(module)
"""


def check_patterns(path: Path, facts: LoraFacts, modules: Iterable[str], limit_s: float = LIMIT_S) -> None:
    """Refuse patterns that are no regular expressions, or on which matching the names of modules does not end.

    Raises:
        AdapterError: it names the field and the pattern.
    """
    patterns = [entry for entry in _patterns(facts) if not _NAMES.fullmatch(entry[1])]
    if not patterns:
        return
    request = json.dumps([[entry[2:] for entry in patterns], sorted(modules)]).encode()
    arguments = [sys.executable, "-I", "-S", "-c", _CHILD]
    try:
        done = subprocess.run(arguments, input=request, capture_output=True, timeout=limit_s, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        field, stated = patterns[_last(error.stdout)][:2]
        raise AdapterError(
            f"{path}: {field} has {reprlib.repr(stated)}, which takes more than {limit_s:g} s to match, as repetitions "
            "in each other do; write it without these, or as a list of names"
        ) from error
    if done.returncode:
        field, stated = patterns[_last(done.stdout)][:2]
        reason = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise AdapterError(
            f"{path}: {field} has {reprlib.repr(stated)}, not a regular expression ({reason}); save it again"
        )


def _last(said: bytes | None) -> int:
    """The number of the pattern that the child was at."""
    numbers = (said or b"").split()
    return int(numbers[-1]) if numbers else 0


def _patterns(facts: LoraFacts) -> Iterator[tuple[str, str, str, str]]:
    """Field and what it states, how peft (0.21) matches it, and what it makes of it."""
    for field in ("target_modules", "exclude_modules"):
        if isinstance(stated := getattr(facts, field), str):
            yield field, stated, "fullmatch", stated
    for stated in facts.modules_to_save or ():
        yield "modules_to_save", stated, "match", rf"(^|.*\.){stated}($|\..*)"
    for field in ("rank_pattern", "alpha_pattern"):
        for stated in getattr(facts, field) or ():
            yield field, stated, "match", rf"(.*\.)?({stated})$"
    layers = facts.layers_pattern or ()
    for stated in (layers,) if isinstance(layers, str) else layers:
        yield "layers_pattern", stated, "match", rf"(?:^|.*?\.){stated}\.(?P<idx>\d+)\."
