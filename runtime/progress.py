"""Progress of long work: who is told of steps and how far they are, and bars on a terminal."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from .names import printable

Advance: TypeAlias = Callable[[int], None]  # is told by how much a step went on: bytes, tensors, clips


@dataclass(frozen=True)
class StepReport:
    """One step: what it wrote, and how far that is from its source."""

    name: str
    error: float
    tolerance: float
    unit: str  # "dB" or "relative RMS"; empty where there is no error to speak of
    seconds: float
    bytes: int
    note: str = ""


def no_advance(_: int) -> None:
    """Tells nobody."""


class Progress(Protocol):
    """Who is told how the work goes on."""

    def begin(self, step: str, total: int, unit: str) -> None:
        """A step begins; it will advance to `total` of `unit` (bytes, graphs, clips)."""

    def advance(self, amount: int) -> None:
        """The current step went on by so much."""

    def end(self, report: StepReport) -> None:
        """The current step is done."""


class NoProgress:
    """Tells nobody."""

    def begin(self, step: str, total: int, unit: str) -> None:
        """Nothing."""

    def advance(self, amount: int) -> None:
        """Nothing."""

    def end(self, report: StepReport) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Steps:
    """The steps of one job: each is told to `progress`, timed, and kept as a report, in their order."""

    progress: Progress
    reports: list[StepReport] = field(default_factory=list)

    def begin(self, name: str, total: int, unit: str) -> Step:
        """Begin a step of `total` in `unit` (bytes, graphs, clips)."""
        self.progress.begin(name, total, unit)
        return Step(self, name, time.perf_counter())


@dataclass(frozen=True)
class Step:
    """A step under way."""

    steps: Steps
    name: str
    start: float

    def end(self, error: float = 0.0, tolerance: float = 0.0, unit: str = "", *, size: int = 0, note: str = "") -> None:
        """The step is done, with an error in `unit`, and wrote `size` bytes."""
        seconds = time.perf_counter() - self.start
        report = StepReport(self.name, error, tolerance, unit, seconds, size, note)
        self.steps.reports.append(report)
        self.steps.progress.end(report)


class StepBars:
    """Progress on stderr: a bar for the step at hand, and a line with its error for each finished one."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        name, done = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[done]}")
        columns = name, BarColumn(), done, TimeElapsedColumn()
        self._console = Console(stderr=True)
        self._bars = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._step = self._bars.add_task("checkpoint", total=None, done="")
        self._total, self._unit = 0, ""

    def __enter__(self) -> StepBars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, step: str, total: int, unit: str) -> None:
        self._total, self._unit = total, unit
        self._bars.reset(self._step, description=printable(step), total=total, done=self._done(0))

    def advance(self, amount: int) -> None:
        self._bars.advance(self._step, amount)
        self._bars.update(self._step, done=self._done(int(self._bars.tasks[0].completed)))

    def end(self, report: StepReport) -> None:
        self._console.print(printable(step_line(report)), highlight=False, soft_wrap=True, markup=False)

    def _done(self, amount: int) -> str:
        if self._unit == "bytes":
            return f"{amount / 1e6:.1f}/{self._total / 1e6:.1f} MB"
        return f"{amount}/{self._total} {self._unit}"


def step_line(step: StepReport) -> str:
    """One finished step: error, tolerance, size and time."""
    size = f"{step.bytes / 1e6:9.2f} MB" if step.bytes else " " * 12
    error = f"error {step.error:8.2e} of {step.tolerance:.1e} {step.unit}" if step.unit else ""  # it measured something
    return f"{step.name:15} {error:39} {size} {step.seconds:7.1f} s  {step.note}".rstrip()


def typed_path(path: str | Path) -> str:
    """A path as it is typed in a command line, whatever is in its name."""
    return subprocess.list2cmdline([str(path)]) if os.name == "nt" else shlex.quote(str(path))
