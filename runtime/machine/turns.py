"""Large things that are not in memory together: what one side opens, it has until the other side's turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Literal, TypeAlias, TypeVar

from .memory import release_freed_memory, release_read_pages

Side: TypeAlias = Literal["audio", "text"]
_T = TypeVar("_T")


class Turns:
    """Whose turn it is. Not for two threads at once."""

    def __init__(self) -> None:
        self._side: Side = "audio"
        self._closed_with: dict[Side, list[Callable[[], None]]] = {"audio": [], "text": []}

    def take(self, side: Side) -> None:
        """It is the turn of this side: the other one has nothing in memory any more.

        Raises:
            CaptionerBusyError: the other one cannot be interrupted, and keeps what it has.
        """
        if side == self._side:
            return
        for close in self._closed_with[self._side]:
            close()
        self._side = side
        release_freed_memory()
        release_read_pages()

    def close_with(self, side: Side, close: Callable[[], None]) -> None:
        """Have this called when the turn of a side ends."""
        self._closed_with[side].append(close)


class Lent(Generic[_T]):
    """Something that is opened when it is called for, which takes the turn of its side; without turns, it stays."""

    def __init__(self, opened: Callable[[], _T], turns: Turns | None, side: Side) -> None:
        self._opened, self._turns = opened, turns
        self._side: Side = side
        self._it: _T | None = None
        if turns is not None:
            turns.close_with(side, self.close)

    def __call__(self) -> _T:
        """Raises what `Turns.take` and opening it raise."""
        if self._turns is not None:
            self._turns.take(self._side)
        if self._it is None:
            self._it = self._opened()
        return self._it

    def close(self) -> None:
        """Let go of it; harmless when repeated."""
        self._it = None
