"""Keys and values of conversations after their last answers, in memory, so that each turn computes what is new."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

from dasheng_edge.runtime.errors import MemoryShortError
from dasheng_edge.runtime.machine.memory import require

from .context import Context
from .decoder import Embeddings
from .model import Tokens

# A position of the 0.6B has 115 kB, of the 7B 57 kB: this holds one very long conversation or a dozen usual ones.
MAX_BYTES = 256 << 20
LOW_BYTES = 64 << 20  # where memory is low
MAX_KEPT = 256  # conversations of however few rows, each of which a new one is held against
MIN_SHARE = 0.25  # of a conversation's rows that another one begins with; a system text alone is soon computed

Item: TypeAlias = "int | Embeddings"  # a token, or a clip as a whole: the same array is the same clip


@dataclass(frozen=True)
class Known:
    """What a prompt has in common with a conversation."""

    state: bytes
    rows: int  # of the state
    common: int  # of these, and at least one row of the prompt is not among them
    rest: Sequence[Tokens | Embeddings]  # of the prompt


class Histories:
    """The last conversations, those that went on least recently dropped first. Not for two threads at once."""

    def __init__(self, *, low_memory: bool = False) -> None:
        self._most = LOW_BYTES if low_memory else MAX_BYTES
        self._kept: list[tuple[list[Item], bytes]] = []  # the last was used last

    def longest(self, prompt: Sequence[Tokens | Embeddings]) -> Known | None:
        """The conversation that has most of a prompt; None if none has so much that it pays to copy its state."""
        items = list(_items(prompt))
        ways = [(_common(items[:-1], kept), index) for index, (kept, _) in enumerate(self._kept)]
        length, best = max(ways, default=(0, 0))
        rows, common = _rows(self._kept[best][0]) if ways else 0, _rows(items[:length])
        if common < max(2, rows * MIN_SHARE):
            return None
        self._kept.append(self._kept.pop(best))
        return Known(self._kept[-1][1], rows, common, list(_segments(items[length:])))

    def keep(
        self, prompt: Sequence[Tokens | Embeddings], tokens: Sequence[int], rows: int, context: Context, sequence: int
    ) -> None:
        """Keep the rows of a sequence: those of a prompt and of the first tokens of the answer to it."""
        items = list(_items(prompt))
        items += tokens[: rows - _rows(items)]
        # What this one begins with is in it, too.
        self._kept = [(kept, state) for kept, state in self._kept if _common(items, kept) < len(kept)]
        with suppress(MemoryShortError):  # then it is computed again
            require("a conversation", "free memory", own=3 * context.state_bytes(sequence))
            self._kept.append((items, context.state(sequence)))
        while len(self._kept) > MAX_KEPT or sum(len(state) for _, state in self._kept) > self._most:
            del self._kept[0]

    def clear(self) -> None:
        """Keep none."""
        self._kept.clear()


def _items(segments: Sequence[Tokens | Embeddings]) -> Iterator[Item]:
    for segment in segments:
        if isinstance(segment, tuple):
            yield from segment
        elif len(segment):
            yield segment


def _segments(items: Sequence[Item]) -> Iterator[Tokens | Embeddings]:
    for is_token, group in groupby(items, lambda item: isinstance(item, int)):
        if is_token:
            yield tuple(item for item in group if isinstance(item, int))
        else:
            yield from (item for item in group if not isinstance(item, int))


def _rows(items: Sequence[Item]) -> int:
    return sum(1 if isinstance(item, int) else len(item) for item in items)


def _common(items: Sequence[Item], others: Sequence[Item]) -> int:
    """How many items both begin with."""
    for index, (item, other) in enumerate(zip(items, others, strict=False)):
        same = item == other if isinstance(item, int) and isinstance(other, int) else item is other
        if not same:
            return index
    return min(len(items), len(others))
