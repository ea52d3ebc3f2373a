"""What an export tells about its steps, and whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class StepReport:
    """One step: what it wrote, and how far that is from its source."""

    name: str
    error: float
    tolerance: float
    unit: str  # "dB" or "relative RMS"
    seconds: float
    bytes: int
    note: str = ""


class Progress(Protocol):
    """Who is told how the export goes on."""

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
