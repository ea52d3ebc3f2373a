"""Windows in events: when each sound begins, how long it is heard, whether it goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from dasheng_edge.runtime.errors import SubtitleError

from .cue import Change, Window
from .labels import Label

MAX_S = 1e8  # three years; later times are a mistake, and floats hold milliseconds up to there
_SLACK_S = 0.5  # by which a sound may begin before a window that is the first to name it: the end of one is heard badly


@dataclass
class Event:
    """A sound, from the window that names it first to the last of those that follow without a break."""

    label: Label
    start_s: float
    end_s: float  # of the last window that names it
    heard: list[Window] = field(default_factory=list)

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
    kept = [
        Window(start, max(start, window.end_s), window.text, window.changes)
        for window in windows
        for start in (min(max(0.0, window.start_s), MAX_S),)
    ]
    return sorted(kept, key=lambda window: (window.start_s, window.end_s))


def events(windows: Sequence[Window], split: Callable[[str], list[Label]]) -> list[Event]:
    """The sounds that windows name, by their beginnings; the windows are `ordered`.

    A sound that windows name one after another is one event. It begins where the window before, which did not name it,
    has ended, or in the window; there, at a change, if changes are known.
    """
    found: list[Event] = []
    active: dict[str, Event] = {}
    before: Window | None = None
    for window in windows:
        named = split(window.text)
        goes_on = {} if before is None or window.start_s > before.end_s + _SLACK_S else active
        active = {}
        new: list[Label] = []
        for label in named:
            if (event := goes_on.get(label.key)) is None:
                new.append(label)
            else:
                event.heard.append(window)
                event.end_s = window.end_s
                active[label.key] = event
        first_s = window.start_s if before is None else min(max(window.start_s, before.end_s), window.end_s)
        for label, start_s in zip(new, _onsets(new, window, first_s), strict=True):
            active[label.key] = Event(label, start_s, window.end_s, [window])
            found.append(active[label.key])
        before = window
    return sorted(found, key=lambda event: event.start_s)


def _onsets(labels: Sequence[Label], window: Window, first_s: float) -> list[float]:
    """When each of the labels that a window is the first to name begins, from `first_s` on, in their order.

    Those that sound together share a change; of more changes than are needed, the strongest count.
    """
    turns = [list(group) for _, group in groupby(_turns(labels))]
    inside = [change for change in window.changes if first_s - _SLACK_S <= change.time_s < window.end_s]
    strongest = sorted(inside, key=lambda change: -change.strength)[: len(turns)]
    times = [max(0.0, change.time_s) for change in sorted(strongest, key=_time)]
    left = len(turns) - len(times)
    last_s = times[-1] if times else first_s
    step = (window.end_s - last_s) / (left + bool(times)) if left else 0.0
    times += [last_s + step * (count + bool(times)) for count in range(left)]
    return [time for time, turn in zip(times, turns, strict=True) for _ in turn]


def _turns(labels: Sequence[Label]) -> list[int]:
    """Which turn each label belongs to: a new one begins with each that comes later than the one before."""
    turn, found = 0, []
    for at, label in enumerate(labels):
        turn += label.later and at > 0
        found.append(turn)
    return found


def _time(change: Change) -> float:
    return change.time_s
