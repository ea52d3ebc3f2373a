"""Windows in events: when each sound begins, how long it is heard, whether it goes on."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from dasheng_edge.runtime.errors import SubtitleError

from .cue import Change, Window
from .labels import Label

MAX_S = 1e8  # three years; later times are a mistake, and floats hold milliseconds up to there

# What places a sound, found on scenes whose times are known: `benchmarks.captions.subtitles` measures it. A place gets
# the logarithm of the strength of its change, less what windows say against it.
_BACK_S = 2.0  # that a sound may begin before the window that names it first
_UNHEARD_S = 1.0  # more than that of it in the window before, which did not name it: costs 1
_UNNAMED_S = 0.5  # that it begins after the start of the next window, if that does not name it: costs 1
_SHORT_S = 0.5  # of it at the end of a window are too little to be named
_APART_S = 0.2  # between sounds of which one follows the other
_DEAF_S = 0.25  # at the beginning of a window, before which nothing is known: a change there is none
_SEEN_S = 0.1  # by which two windows may differ about the time of a change
_NO_CHANGE = 0.03  # strength of a place without a change
_AGAINST = 5.0  # to begin together with a sound that it follows


@dataclass
class Event:
    """A sound, and the windows that name it one after another."""

    labels: list[Label]  # as each window puts it
    heard: list[Window]
    start_s: float = 0.0

    @property
    def label(self) -> Label:
        """As most windows put it."""
        keys = [label.key for label in self.labels]
        return self.labels[keys.index(max(keys, key=keys.count))]

    @property
    def end_s(self) -> float:
        """Up to when it may be heard."""
        return self.heard[-1].end_s

    @property
    def lasts(self) -> bool:
        """Whether no moment is in all its windows, so that it is no short sound that several windows hold."""
        return self.heard[-1].start_s >= self.heard[0].end_s

    @property
    def text(self) -> str:
        """The label, in the form for its length."""
        return self.label.lasting if self.lasts else self.label.single


def ordered(windows: Sequence[Window]) -> list[Window]:
    """By time, none before 0 or of less than no length.

    Raises:
        SubtitleError: a time is none.
    """
    for window in windows:
        if not (math.isfinite(window.start_s) and math.isfinite(window.end_s) and window.end_s <= MAX_S):
            raise SubtitleError(
                f"a window lies from {window.start_s} s to {window.end_s} s; expected times from 0 to {MAX_S:.0f} s"
            )
    starts = [min(max(0.0, window.start_s), MAX_S) for window in windows]
    kept = [
        replace(one, start_s=start, end_s=max(start, one.end_s)) for start, one in zip(starts, windows, strict=True)
    ]
    return sorted(kept, key=lambda window: (window.start_s, window.end_s))


def events(windows: Sequence[Window], split: Callable[[str], list[Label]], agree: int = 1) -> list[Event]:
    """The sounds that windows name, by their beginnings; the windows are `ordered`.

    A sound that windows name one after another is one event. It is left out if fewer than `agree` of them name it,
    where so many hear it.
    """
    named = [split(window.text) for window in windows]
    changes = _changes(windows)
    found: list[Event] = []
    active: dict[str, Event] = {}
    for at, window in enumerate(windows):
        before_s = windows[at - 1].end_s if at else -math.inf
        goes_on = active if window.start_s <= before_s + _SHORT_S else {}
        active = _going_on(named[at], goes_on)
        for label, event in zip(named[at], active.values(), strict=True):
            event.labels.append(label)
            event.heard.append(window)
        after = {label.kin or label.key for label in named[at + 1]} if at + 1 < len(windows) else None
        next_s = windows[at + 1].start_s if after is not None else math.inf
        first_s = min(max(window.start_s, before_s), window.end_s)
        turns = list(zip(_turns(named[at]), active.values(), strict=True))
        _Placing(window, first_s, next_s, after or set()).place(turns, changes)
        found += [event for event in active.values() if len(event.heard) == 1]
    return sorted((event for event in found if _is_sure(event, windows, agree)), key=_start)


def _going_on(labels: Sequence[Label], before: Mapping[str, Event]) -> dict[str, Event]:
    """The event of each label, by its key: one of those before that has it, or that may be the same, or a new one."""
    found = {label.key: before[label.key] for label in labels if label.key in before}
    kin = {event.labels[-1].kin: event for key, event in before.items() if key not in found and len(event.heard) == 1}
    events = [found.get(label.key) or (kin.pop(label.kin, None) if label.kin else None) for label in labels]
    return {label.key: event or Event([], []) for label, event in zip(labels, events, strict=True)}


@dataclass(frozen=True)
class _Placing:
    """Where the sounds begin that a window is the first to name."""

    window: Window
    first_s: float  # the end of the window before, if it is in this one
    next_s: float  # the start of the next window
    next_keys: set[str]  # what that one names

    def place(self, turns: Sequence[tuple[int, Event]], changes: Sequence[Change]) -> None:
        """Give those events their start that have none. The others begin before those that follow them.

        Of all places in order, the best together: those that sound together may share a change.
        """
        new = [(turn, event) for turn, event in turns if len(event.heard) == 1]
        old = [(turn, event.start_s) for turn, event in turns if len(event.heard) > 1]
        if not new:
            return
        places = self._places(len(new), changes, [start_s for _, start_s in old])
        scores = [[self._score(turn, event, old, place) for place in places] for turn, event in new]
        best, ways = scores[0], list[list[int]]()
        for (before, _), (turn, _), score in zip(new, new[1:], scores[1:], strict=False):
            shared = [-_AGAINST if turn > before else -own for own in score]  # two share what one is worth
            way = [self._best(best, at, shared[at]) for at in range(len(places))]
            best = [best[came] + score[at] + (shared[at] if came == at else 0.0) for at, came in enumerate(way)]
            ways.append(way)
        at = max(range(len(places)), key=best.__getitem__)
        for way, (_, event) in zip([*reversed(ways), []], reversed(new), strict=True):
            event.start_s = places[at].time_s
            at = way[at] if way else at

    @staticmethod
    def _best(scores: Sequence[float], at: int, shared: float) -> int:
        """The best place up to `at` for a sound before one that is there."""
        return max(range(at + 1), key=lambda came: scores[came] + (shared if came == at else 0.0))

    def _places(self, count: int, changes: Sequence[Change], old: Sequence[float]) -> list[Change]:
        """Where a sound may begin, in order: at changes, with others, or in even steps where nothing is known."""
        first = bisect_left(changes, self.window.start_s - _BACK_S, key=_time)
        last = bisect_left(changes, self.window.end_s, key=_time)
        step_s = (self.window.end_s - self.first_s) / count
        plain = [*old, *(self.first_s + step_s * number for number in range(count))]
        return sorted([*changes[first:last], *(Change(time_s, _NO_CHANGE) for time_s in plain)], key=_time)

    def _score(self, turn: int, event: Event, old: Sequence[tuple[int, float]], place: Change) -> float:
        time_s = place.time_s
        earliest_s = max((start_s + _APART_S for before, start_s in old if before < turn), default=-math.inf)
        latest_s = min((start_s for after, start_s in old if after > turn), default=math.inf)
        if not earliest_s <= time_s <= latest_s:
            return -10 * _AGAINST - abs(time_s - self.window.start_s)
        beside = any(other == turn and start_s == time_s for other, start_s in old)
        score = 0.0 if beside else math.log(max(place.strength, 1e-3))
        score -= max(0.0, self.first_s - _SHORT_S - time_s) / _UNHEARD_S
        score -= max(0.0, time_s - (self.window.end_s - _SHORT_S)) / _APART_S
        if (event.label.kin or event.label.key) not in self.next_keys:
            score -= max(0.0, time_s - self.next_s) / _UNNAMED_S
        return score


def _is_sure(event: Event, windows: Sequence[Window], agree: int) -> bool:
    """Whether enough windows name it, of those that hear more of it than its beginning."""
    if len(event.heard) >= agree:
        return True
    time_s = event.start_s + _SHORT_S
    return sum(window.start_s <= time_s <= window.end_s for window in windows) <= len(event.heard)


def _changes(windows: Sequence[Window]) -> list[Change]:
    """The changes of all windows, at times of the file; where two windows overlap, each tells of its half."""
    found: list[Change] = []
    for at, window in enumerate(windows):
        from_s = (windows[at - 1].end_s + window.start_s) / 2 if at else -math.inf
        to_s = (windows[at + 1].start_s + window.end_s) / 2 if at + 1 < len(windows) else math.inf
        from_s, to_s = max(from_s, window.start_s + _DEAF_S), to_s if to_s > window.start_s else math.inf
        for change in window.changes:
            time_s = window.start_s + change.time_s
            beside_s = time_s - found[-1].time_s if found else math.inf
            if from_s - _SEEN_S <= time_s < min(to_s + _SEEN_S, window.end_s) and not 0 <= beside_s <= 2 * _SEEN_S:
                found.append(replace(change, time_s=time_s))
    return sorted(found, key=_time)


def _turns(labels: Sequence[Label]) -> list[int]:
    """Which turn each label belongs to: a new one begins with each that comes later than the one before."""
    return list(accumulate(int(label.later) for label in labels))


def _time(change: Change) -> float:
    return change.time_s


def _start(event: Event) -> float:
    return event.start_s
