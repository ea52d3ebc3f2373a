"""Measures variants in turns, so that what else the machine does hits all of them, and sums up what was measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

_T = TypeVar("_T")
_Name = TypeVar("_Name")
MIN_ROUNDS = 5  # for a median


def take_turns(variants: Mapping[_Name, Callable[[], _T]], rounds: int, warm_up: int = 1) -> dict[_Name, list[_T]]:
    """What each call of each variant returned, `rounds` of them, after `warm_up` rounds that are not kept.

    Every second round runs backwards: nobody always comes after the same other.
    """
    names = list(variants)
    taken: dict[_Name, list[_T]] = {name: [] for name in names}
    for index in range(warm_up + rounds):
        for name in reversed(names) if index % 2 else names:
            value = variants[name]()
            if index >= warm_up:
                taken[name].append(value)
    return taken


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """The same, but it returns the seconds that it took."""

    def run() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return run


def summed_up(values: Sequence[float]) -> dict[str, object]:
    """Every value with the median, p50, and p90 of them."""
    return {"p50": float(np.percentile(values, 50)), "p90": float(np.percentile(values, 90)), "values": list(values)}


def times(slower: Mapping[str, Any], faster: Mapping[str, Any]) -> float:
    """How many times as long one takes as the other, from their sums: the median over the rounds.

    Round by round, because neighbours in time are treated alike by the machine.
    """
    pairs = zip(slower["values"], faster["values"], strict=True)
    return float(np.median([one / other for one, other in pairs]))


def field(rows: Iterable[Mapping[str, float]], name: str) -> dict[str, object]:
    """One field of what each turn returned, summed up."""
    return summed_up([row[name] for row in rows])
