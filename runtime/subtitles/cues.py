"""Windows in cues: what is heard, when, in lines that keep the rules of `lint` whatever was said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .cue import HOP_S, WINDOW_S, Cue, Window  # noqa: F401  # windows are asked for here, too
from .events import Event, events, ordered
from .labels import labels, sentences
from .lint import GAP_MS, MAX_MS, MIN_MS
from .styles import Style, style_named
from .transcript import spoken
from .wrapping import MAX_LINES, blocks, reading_ms, shown

# Of windows up to here, two that overlap must name a sound. A model says all that it hears in a short one; of a longer
# one it tells the main sounds, and another may leave out what the first has named.
MAX_SHORT_S = 6.0
SHOWN_MS = 3000  # that a label stays where nothing follows and its sound lasts
JOIN_MS = 500  # labels that begin within are shown together: sounds that begin at once
MAX_LATE_MS = 7000  # what could be shown no earlier is not shown: it would be beside the sound


@dataclass(frozen=True)
class _Line:
    """Lines that are shown together, from a time on if there is room."""

    start_ms: int
    end_ms: int  # up to when they are worth showing
    lines: tuple[str, ...]
    is_speech: bool = False
    late_ms: int = MAX_LATE_MS  # how much later it may be shown


def cues(
    windows: Sequence[Window], *, style: str | Style = "sdh", speech: Sequence[Window] = (), agree: int | None = None
) -> list[Cue]:
    """Windows of captions -> cues in their order, which pass `lint`.

    `speech` are windows of transcripts, which become lines without brackets in the same cues. A sound that fewer than
    `agree` windows name one after another is left out, where so many overlap: by default 2 if windows are short, as
    `WINDOW_S`. What there is no time to show is left out, too.

    Raises:
        SubtitleError: there is no such style, or a time is none.
    """
    style = style_named(style) if isinstance(style, str) else style
    if agree is None:
        agree = 2 if style.labels and all(one.end_s - one.start_s <= MAX_SHORT_S for one in windows) else 1
    lines = [*_sounds(windows, style, agree), *_speech(speech)]
    return list(_placed(sorted(lines, key=lambda line: (line.start_ms, line.is_speech)), style.at_once))


def _sounds(windows: Sequence[Window], style: Style, agree: int) -> Iterator[_Line]:
    for event in events(ordered(windows), labels if style.labels else sentences, agree):
        start_ms = _ms(event.start_s)
        yield from _blocks(
            f"{style.before}{event.text}{style.after}", start_ms, _ms(event.end_s), whole=not style.labels
        )
        if style.continues_s and event.label.continues:
            for window in _reminders(event, max(style.continues_s, MAX_MS / 1000)):
                text = f"{style.before}{event.label.continues}{style.after}"
                yield from _blocks(text, _ms(window.start_s), _ms(window.end_s))


def _reminders(event: Event, every_s: float) -> Iterator[Window]:
    """Those windows of an event that say again that it is heard, `every_s` after the last at the earliest."""
    last_s = event.start_s
    for window in event.heard if event.lasts else ():
        if window.start_s >= last_s + every_s:
            yield window
            last_s = window.start_s


def _blocks(text: str, start_ms: int, end_ms: int, *, whole: bool = False) -> Iterator[_Line]:
    """A text that may need several cues, one after another while there is time to show them.

    `whole` sentences of windows that overlap are too long to be read one after another: one that would be shown after
    its window is left out, for the next one tells what is heard by then.
    """
    latest_ms = max(start_ms, end_ms) + MAX_LATE_MS
    found = blocks(shown(text))
    late_ms = min(MAX_LATE_MS, max(0, end_ms - start_ms)) if whole and len(found) == 1 else MAX_LATE_MS
    for lines in found:
        if start_ms > latest_ms:
            return
        yield _Line(start_ms, max(start_ms, end_ms), lines, late_ms=late_ms)
        start_ms += max(MIN_MS, reading_ms(lines)) + GAP_MS


def _speech(windows: Sequence[Window]) -> Iterator[_Line]:
    for start_s, end_s, text in spoken(ordered(windows)):
        for lines in blocks(text):
            yield _Line(_ms(start_s), _ms(end_s), lines, is_speech=True)


def _placed(lines: Sequence[_Line], at_once: int) -> Iterator[Cue]:
    """Lines by time -> cues that do not touch: each as early as the one before allows."""
    free_ms, at = 0, 0
    while at < len(lines):
        first = lines[at]
        start_ms = max(first.start_ms, free_ms)
        at += 1
        if start_ms > first.start_ms + first.late_ms:
            continue
        together = [first]
        while at < len(lines) and _joins(together, lines[at], start_ms, at_once):
            together.append(lines[at])
            at += 1
        shown_lines = tuple(line for one in together for line in one.lines)
        need_ms = max(MIN_MS, reading_ms(shown_lines))
        length_ms = max(
            need_ms, min(max(one.end_ms for one in together) - start_ms, MAX_MS if first.is_speech else SHOWN_MS)
        )
        if at < len(lines):
            length_ms = max(need_ms, min(length_ms, lines[at].start_ms - GAP_MS - start_ms))
        yield Cue(start_ms / 1000, (start_ms + length_ms) / 1000, shown_lines)
        free_ms = start_ms + length_ms + GAP_MS


def _joins(together: Sequence[_Line], line: _Line, start_ms: int, at_once: int) -> bool:
    """Whether a line may be shown with others that are shown from `start_ms` on."""
    if sum(len(one.lines) for one in together) + len(line.lines) > MAX_LINES or line.start_ms > start_ms + JOIN_MS:
        return False
    return line.is_speech or sum(not one.is_speech for one in together) < at_once


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
