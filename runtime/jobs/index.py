"""Numbers by texts, and places of rows, for as many as a job may have inputs."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from hashlib import blake2b
from itertools import compress

_FREE, _SLOTS = 0, 64


def digest(text: str) -> int:
    """63 bits of its hash, never 0: of a million texts, two are taken for one with a chance of 1 in 18 million."""
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") >> 1 or 1


class Index:
    """A number for each text, -1 where there is none, in 24 to 48 bytes: a dict of texts takes ten times as much."""

    def __init__(self) -> None:
        self._keys, self._numbers = array("q", bytes(8 * _SLOTS)), array("q", bytes(8 * _SLOTS))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, text: str) -> int:
        slot = self._slot(key := digest(text))
        return self._numbers[slot] if self._keys[slot] == key else -1

    def __setitem__(self, text: str, number: int) -> None:
        slot = self._slot(key := digest(text))
        self._count += self._keys[slot] == _FREE
        self._keys[slot], self._numbers[slot] = key, number
        if 3 * self._count > 2 * len(self._keys):
            self._grow()

    def numbers(self) -> Iterator[int]:
        """Of all texts."""
        return compress(self._numbers, self._keys)

    def _slot(self, key: int) -> int:
        """Where it is, or would be: the first from its place on that is its own or free."""
        last = len(self._keys) - 1
        slot = key & last
        while self._keys[slot] not in (key, _FREE):
            slot = slot + 1 & last
        return slot

    def _grow(self) -> None:
        keys, numbers = self._keys, self._numbers
        self._keys, self._numbers = (array("q", bytes(16 * len(keys))) for _ in range(2))
        for key, number in zip(keys, numbers, strict=True):
            if key != _FREE:
                slot = self._slot(key)
                self._keys[slot], self._numbers[slot] = key, number


class RowPlaces:
    """Where rows are in the ledger: of each file those from the first window on without a hole, and a few beyond it."""

    def __init__(self) -> None:
        self.last = Index()  # by keys: which row is their last
        self._places, self._windows, self._before = array("q"), array("I"), array("I")  # of each; ~place ends a file
        self._beyond: dict[str, dict[int, int]] = {}  # by keys and windows: those that came before the ones ahead

    def add(self, key: str, window: int, place: int, *, last: bool) -> None:
        """Keep the place of a row; of two for one window, the first."""
        if window < (number := self.count(key)) or self.ended(key):
            return
        beyond = self._beyond.setdefault(key, {})
        beyond.setdefault(window, ~place if last else place)
        while number in beyond and not self.ended(key):
            before, self.last[key] = self.last[key], len(self._places)
            self._places.append(beyond.pop(number))
            self._windows.append(number)
            self._before.append(max(0, before))
            number += 1
        if not beyond or self.ended(key):
            del self._beyond[key]

    def beyond(self, key: str, window: int) -> int | None:
        """The place of a row behind a hole."""
        place = self._beyond.get(key, {}).get(window)
        return None if place is None else max(place, ~place)

    def drop(self, key: str) -> None:
        """Forget the rows of a file."""
        self._beyond.pop(key, None)
        if self.count(key):
            self.last[key] = -1

    @property
    def is_empty(self) -> bool:
        """Whether there is no row."""
        return not self._beyond and max(self.last.numbers(), default=-1) < 0

    def count(self, key: str) -> int:
        """Rows that there are of a file."""
        return 0 if (last := self.last[key]) < 0 else self._windows[last] + 1

    def ended(self, key: str) -> bool:
        """Whether its last is there."""
        return (last := self.last[key]) >= 0 and self._places[last] < 0

    def places(self, key: str) -> array[int]:
        """Of the rows of a file, in their order."""
        places, row = array("q"), self.last[key]
        for _ in range(self.count(key)):
            places.append(max(self._places[row], ~self._places[row]))
            row = self._before[row]
        places.reverse()
        return places
