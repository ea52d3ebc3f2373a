"""Two sides, of which one has something in memory."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import pytest

from dasheng_edge.runtime.errors import CaptionerBusyError
from dasheng_edge.runtime.machine import turns as module
from dasheng_edge.runtime.machine.turns import Lent, Side, Turns


class Thing:
    """Counts those of its side that there are."""

    def __init__(self, alive: Counter[str], side: Side) -> None:
        self.alive, self.side = alive, side
        alive[side] += 1

    def __del__(self) -> None:
        self.alive[self.side] -= 1


@pytest.fixture
def alive() -> Counter[str]:
    return Counter()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("release_freed_memory", "release_read_pages"):
        monkeypatch.setattr(module, name, lambda: None)


@pytest.mark.parametrize("seed", range(5))
def test_the_sides_are_never_in_memory_together(seed: int, alive: Counter[str]) -> None:
    turns, opened = Turns(), Counter[str]()
    sides: dict[str, Side] = {"encoder": "audio", "projector": "audio", "weights": "text"}
    lent = {name: Lent(partial(Thing, alive, side), turns, side) for name, side in sides.items()}
    generator = random.Random(seed)
    for _ in range(50):
        name = generator.choice(sorted(lent))
        thing = lent[name]()
        assert lent[name]() is thing  # until the other side's turn
        opened[thing.side] += 1
        del thing
        assert len(+alive) == 1
    assert set(opened) == {"audio", "text"}
    lent["weights"]()
    assert alive["audio"] == 0


def test_without_turns_things_stay(alive: Counter[str]) -> None:
    audio, text = Lent(partial(Thing, alive, "audio"), None, "audio"), Lent(partial(Thing, alive, "text"), None, "text")
    first = audio()
    text()
    assert audio() is first
    audio.close()
    audio.close()
    assert audio() is not first


def test_who_cannot_be_interrupted_keeps_what_it_has(alive: Counter[str]) -> None:
    turns, busy = Turns(), [True]

    def refuse() -> None:
        if busy:
            raise CaptionerBusyError("busy")

    turns.close_with("text", refuse)
    audio, text = (
        Lent(partial(Thing, alive, "audio"), turns, "audio"),
        Lent(partial(Thing, alive, "text"), turns, "text"),
    )
    kept = text()
    for _ in range(2):
        with pytest.raises(CaptionerBusyError):
            audio()
        assert text() is kept
    busy.clear()
    del kept
    audio()
    assert alive["text"] == 0


def test_what_cannot_be_opened_is_tried_again(alive: Counter[str]) -> None:
    turns, fails = Turns(), [True]

    def opened() -> Thing:
        if fails:
            raise OSError("full")
        return Thing(alive, "text")

    text = Lent(opened, turns, "text")
    with pytest.raises(OSError, match="full"):
        text()
    fails.clear()
    assert text() is text()
