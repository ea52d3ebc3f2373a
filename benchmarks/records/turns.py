"""Measures variants in turns, so that other load on the machine hits all of them, and sums up the results."""

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

    Every second round runs backwards, so that no variant always follows the same other.
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
    """A function that calls it and returns the seconds that this took."""

    def run() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return run


def summed_up(values: Sequence[float]) -> dict[str, object]:
    """All values, their median as p50, and their p90."""
    return {"p50": float(np.percentile(values, 50)), "p90": float(np.percentile(values, 90)), "values": list(values)}


def times(slower: Mapping[str, Any], faster: Mapping[str, Any]) -> float:
    """How many times as long the slower takes as the faster: the median over the rounds.

    The ratio is taken within each round, since the machine changes less within a round than between rounds.
    """
    pairs = zip(slower["values"], faster["values"], strict=True)
    return float(np.median([one / other for one, other in pairs]))


def field(rows: Iterable[Mapping[str, float]], name: str) -> dict[str, object]:
    """All values of a field of what the turns returned, with p50 and p90."""
    return summed_up([row[name] for row in rows])
