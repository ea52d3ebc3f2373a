"""The section of a page that shows a record: tables in Markdown and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NONE = "-"


@dataclass(frozen=True)
class Section:
    """One record on the page."""

    title: str
    text: str  # Markdown: tables and what they say
    plot: Figure


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Markdown; the first columns are words, the others numbers, which stand on the right."""
    rule = [*("---" for _ in head[:words]), *("---:" for _ in head[words:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def ms(seconds: float) -> str:
    """Milliseconds."""
    return f"{1000 * seconds:.1f}"


def megabytes(size: float | None) -> str:
    """10^6 bytes."""
    return NONE if size is None else f"{size / 1e6:,.0f}"
