"""Transcripts of windows in pieces with times: windows overlap, and what two of them say is said once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from .cue import Window
from .lint import MAX_MS, MIN_MS
from .wrapping import MAX_LINES, badness, blocks, columns, graphemes, limits, may_cut, shown

_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0eff]")  # scripts without spaces between words
_THAI = re.compile("[\u0e00-\u0eff]")  # and Lao, of which the rules of lines know no words
_SENTENCE_END = re.compile(r"[.!?…。！？؟।][\"'”’»)\]」』]*$")
_PAUSE_S = 1.0  # between words, which ends a cue
_STAYS_S = 3.0  # without a change that speech may go on: it changes with nearly every word
_FAINT = 0.1  # of a change that tells nothing of speech
_MAX_PER_S = 25.0  # columns that are spoken in a second; where text would be faster, it was spoken elsewhere, too
_DENSE_PER_S = 8.0  # half of what is spoken without pauses
_SHORT = 10  # columns that are not divided, however slowly they are spoken
_MAX_COMPARED = 400  # words of a window that are looked for in the next
_AWAY = 2.0  # that a column beside its place counts against two windows saying the same


@dataclass
class _Word:
    text: str
    start_s: float
    end_s: float
    spaced: bool  # whether a space stands before it
    width: int

    @property
    def key(self) -> str:
        """Equal for words that are told alike."""
        return re.sub(r"\W", "", self.text.casefold()) or self.text


def spoken(windows: Sequence[Window]) -> Iterator[tuple[float, float, str]]:
    """Pieces of what is said that fit a cue each: (start_s, end_s, text). The windows are ordered.

    A transcript is spread by its length over that part of its window where something changes, and where no other
    window hears nothing. It ends where the next one goes on: at words that both say.
    """
    words: list[_Word] = []
    before: Window | None = None
    for window, start_s, end_s in _heard(windows):
        new = _words(window, start_s, end_s)
        if before is None or window.start_s >= before.end_s:
            _append(words, new)
        else:
            _follow(words, new, window, before)
        before = window if before is None or window.end_s >= before.end_s else before
    for sentence in _sentences(words):
        yield from _pieces(sentence)


def _heard(windows: Sequence[Window]) -> Iterator[tuple[Window, float, float]]:
    """The windows that say something, and the part of each that no other window says nothing of."""
    silent: list[Window | None] = [None]  # from the last: the next that says nothing
    for window in reversed(windows[1:]):
        silent.append(silent[-1] if shown(window.text) else window)
    start_s = 0.0
    for window, after in zip(windows, reversed(silent), strict=False):
        if not shown(window.text):
            start_s = max(start_s, window.end_s)
            continue
        end_s = after.start_s if after is not None and after.end_s >= window.end_s else window.end_s
        yield window, max(window.start_s, start_s), min(window.end_s, end_s)


def _words(window: Window, start_s: float, end_s: float) -> list[_Word]:
    """The words of a window, of which it is likely that they are spoken between two times."""
    parts = [(part, not at) for word in shown(window.text).split() for at, part in enumerate(_parts(word))]
    ends = list(accumulate(columns(part) for part, _ in parts))
    spans = [(window.start_s, window.end_s)]
    for narrower in ([(start_s, end_s)], _changing(window, start_s, end_s)):
        spans = narrower if _length(narrower) * _MAX_PER_S >= ends[-1] else spans
    scale = _length(spans) / ends[-1]
    return [
        _Word(part, _time(spans, scale * start, ends=False), _time(spans, scale * end, ends=True), spaced, end - start)
        for (part, spaced), start, end in zip(parts, [0, *ends], ends, strict=False)
    ]


def _parts(word: str) -> list[str]:
    """What of a word is not divided: all of it, but in scripts without spaces or if it is longer than a line."""
    if not _UNSPACED.search(word) and columns(word) <= limits(word).columns:
        return [word]
    parts: list[str] = []
    for one in graphemes(word):
        if parts and not (may_cut(parts[-1][-1], one) or _THAI.match(one) or len(parts[-1]) > _SHORT):
            parts[-1] += one
        else:
            parts.append(one)
    return parts


def _changing(window: Window, start_s: float, end_s: float) -> list[tuple[float, float]]:
    """The spans of a part of a window in which something changes now and then."""
    times = [window.start_s + change.time_s for change in window.changes if change.strength >= _FAINT]
    times = sorted(time_s for time_s in times if start_s <= time_s < end_s)
    if times and times[0] <= start_s + _STAYS_S:
        times[0] = start_s
    spans: list[tuple[float, float]] = []
    for time_s in times:
        if spans and time_s <= spans[-1][1]:
            spans[-1] = spans[-1][0], min(end_s, time_s + _STAYS_S)
        else:
            spans.append((time_s, min(end_s, time_s + _STAYS_S)))
    return spans


def _length(spans: Sequence[tuple[float, float]]) -> float:
    return sum(end_s - start_s for start_s, end_s in spans)


def _time(spans: Sequence[tuple[float, float]], at_s: float, *, ends: bool) -> float:
    """The time at which so much of the spans is over; between two, where the first `ends` or the second begins."""
    for start_s, end_s in spans:
        if at_s < end_s - start_s or (ends and at_s <= end_s - start_s):
            return start_s + at_s
        at_s -= end_s - start_s
    return spans[-1][1]


def _follow(words: list[_Word], new: list[_Word], window: Window, before: Window) -> None:
    """Add a window to what was said up to here, which overlaps the one before."""
    since = next((at for at in range(len(words), 0, -1) if words[at - 1].start_s < before.start_s), 0)
    since = max(since, len(words) - _MAX_COMPARED)
    tail = words[since:]
    kept, skipped = _meeting(tail, new[:_MAX_COMPARED]) or (len(tail), 0)
    if window.end_s < before.end_s:  # it lies in the other
        words += new if (kept, skipped) == (len(tail), 0) else []
        words.sort(key=lambda word: word.start_s)
        return
    if (kept, skipped) == (len(tail), 0) and _rate(tail) >= _DENSE_PER_S <= _rate(new):  # they hear another thing each
        middle_s = (window.start_s + before.end_s) / 2
        kept, skipped = (sum(word.end_s <= middle_s for word in some) for some in (tail, new))
    tail, new = tail[:kept], new[skipped:]
    if tail and new and tail[-1].end_s > new[0].start_s:
        meet_s = max((tail[-1].end_s + new[0].start_s) / 2, tail[0].start_s)
        _time_anew(tail, tail[0].start_s, meet_s)
        _time_anew(new, meet_s, max(meet_s, new[-1].end_s))
    del words[since + kept :]
    _append(words, new)


def _append(words: list[_Word], new: Sequence[_Word]) -> None:
    if words and new and _UNSPACED.search(words[-1].text) and _UNSPACED.search(new[0].text):
        new[0].spaced = False
    words += new


def _time_anew(words: Sequence[_Word], start_s: float, end_s: float) -> None:
    """Give words their part of another time each."""
    first_s, length_s = words[0].start_s, words[-1].end_s - words[0].start_s
    scale = (end_s - start_s) / length_s if length_s > 0 else 0.0
    for word in words:
        word.start_s, word.end_s = (start_s + scale * (time_s - first_s) for time_s in (word.start_s, word.end_s))


def _rate(words: Sequence[_Word]) -> float:
    """Columns a second."""
    return sum(word.width for word in words) / max(1e-3, words[-1].end_s - words[0].start_s) if words else 0.0


def _meeting(tail: Sequence[_Word], head: Sequence[_Word]) -> tuple[int, int] | None:
    """How many words of a window are kept, and how many of the next left out, since both go on alike there.

    Of all runs of equal words, the one of most columns, less those that it lies beside its place; or else the end of
    the one that is the beginning of the other.
    """
    places: dict[str, list[int]] = {}
    for at, word in enumerate(head):
        places.setdefault(word.key, []).append(at)
    per_s = _AWAY * (_rate(tail) + _rate(head)) / 2
    widths = [0, *accumulate(word.width for word in head)]
    best, most, runs = None, 0.0, dict[int, int]()
    for i, word in enumerate(tail):
        runs = {j: runs.get(j - 1, 0) + 1 for j in places.get(word.key, ())}
        for j, length in runs.items():
            a, b = i + 1 - length, j + 1 - length
            away_s = abs(tail[a].start_s + word.end_s - head[b].start_s - head[j].end_s) / 2
            if (score := widths[j + 1] - widths[b] - per_s * away_s) > most:
                best, most = (a, b), score
    if best is None and (ends := [j + 1 for j, length in runs.items() if length == j + 1]):
        best = len(tail) - max(ends), 0
    return best


def _sentences(words: Sequence[_Word]) -> Iterator[Sequence[_Word]]:
    """Words up to the end of a sentence, or of several short ones, or to a pause."""
    first = 0
    for at, (word, after) in enumerate(pairwise(words), 1):
        long = 1000 * (word.end_s - words[first].start_s) >= MIN_MS
        if after.start_s > word.end_s + _PAUSE_S or (long and _SENTENCE_END.search(word.text)):
            yield words[first:at]
            first = at
    if words:
        yield words[first:]


def _pieces(words: Sequence[_Word]) -> Iterator[tuple[float, float, str]]:
    """Words that go on, in pieces that fit a cue, as even as their sense allows."""
    ends = list(accumulate(word.width + word.spaced for word in words))
    text = "".join(" " * word.spaced + word.text for word in words).strip()
    slow = 1000 * (words[-1].end_s - words[0].start_s) > MAX_MS and ends[-1] > _SHORT
    if len(words) == 1 or not (slow or ends[-1] > MAX_LINES * limits(text).columns + 1 or len(blocks(text)) > 1):
        yield words[0].start_s, words[-1].end_s, text
        return
    cut = min(
        range(1, len(words)),
        key=lambda at: (
            abs(ends[-1] / 2 - ends[at - 1]) + 2 * badness(words[at - 1].text, words[at].text, spaced=words[at].spaced)
        ),
    )
    yield from _pieces(words[:cut])
    yield from _pieces(words[cut:])
