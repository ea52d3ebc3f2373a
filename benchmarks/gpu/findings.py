"""What a stage finds, stored after each figure, so that a stage that is ended leaves what it had."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dasheng_edge.runtime.atomic_output import replace_text

MAX_ERROR = 600  # characters of a message that are kept


class Findings:
    """Figures by name, in a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.facts, self._began = path, dict[str, Any](), time.perf_counter()

    def note(self, name: str, value: object) -> None:
        """Store a figure, and show it on stderr."""
        self.facts[name] = value
        replace_text(self.path, json.dumps(self.facts, indent=1) + "\n")
        text = json.dumps(value)
        print(f"[{self.path.stem} {time.perf_counter() - self._began:6.1f} s] {name}: {text[:400]}", file=sys.stderr)

    def attempt(self, name: str, measure: Callable[[], object]) -> None:
        """Store what is measured, or why it cannot be: one figure must not cost the others."""
        try:
            self.note(name, measure())
        except Exception as error:  # noqa: BLE001  # of libraries that share no base
            self.note(name, {"error": f"{type(error).__name__}: {error}"[:MAX_ERROR]})


def how_ended(status: int) -> int | str:
    """An exit status; in words where a signal ended the process, as a kernel that is missing does."""
    return status if status >= 0 else f"ended by {signal.Signals(-status).name}"


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]
