"""Transcripts of windows in pieces with times: windows overlap, and what two of them say is said once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from .cue import Window
from .wrapping import blocks, graphemes, shown

_MIN_SHARED = 2  # words that two windows say alike where they overlap; fewer are chance
_WIDE = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0eff]")  # scripts without spaces between words


@dataclass(frozen=True)
class _Word:
    text: str
    start_s: float
    end_s: float
    spaced: bool  # whether a space stands before it


def spoken(windows: Sequence[Window]) -> Iterator[tuple[float, float, str]]:
    """Pieces of what is said that fit a cue each: (start_s, end_s, text). The windows are ordered.

    A transcript is spread over its window by its length, and ends where the next one goes on: at words that both say,
    or in the middle of what they share.
    """
    words: list[_Word] = []
    before_s = 0.0
    for window in windows:
        words = _followed(words, _words(window), window.start_s, before_s)
        before_s = window.end_s
    return _pieces(words)


def _words(window: Window) -> list[_Word]:
    found: list[tuple[str, bool]] = []
    for word in shown(window.text).split():
        parts = graphemes(word) if _WIDE.search(word) else [word]
        found += [(part, not at) for at, part in enumerate(parts)]
    size = sum(len(text) for text, _ in found) or 1
    words, at = [], 0
    for text, spaced in found:
        times = [window.start_s + (window.end_s - window.start_s) * place / size for place in (at, at + len(text))]
        words.append(_Word(text, times[0], times[1], spaced))
        at += len(text)
    return words


def _followed(words: list[_Word], new: list[_Word], start_s: float, before_s: float) -> list[_Word]:
    """What was said up to here, and a window more, which begins at `start_s`; the one before ends at `before_s`."""
    shared = next((at for at, word in enumerate(words) if word.end_s > start_s), len(words))
    tail, head = words[shared:], [word for word in new if word.start_s < before_s]
    if not tail or not head:
        return words + new
    said, again = ([re.sub(r"\W", "", word.text.casefold()) for word in some] for some in (tail, head))
    match = SequenceMatcher(None, said, again, autojunk=False).find_longest_match()
    if match.size >= _MIN_SHARED:
        return [*words[: shared + match.a], *new[match.b :]]
    middle_s = (start_s + before_s) / 2
    kept = [word for word in words if word.end_s <= middle_s]
    return kept + [word for word in new if word.end_s > middle_s]


def _pieces(words: Sequence[_Word]) -> Iterator[tuple[float, float, str]]:
    """Words in pieces: as long as they fit one cue, up to the end of a sentence or a break."""
    piece: list[_Word] = []
    for word in words:
        if piece and (_ends(piece, word) or len(blocks(_joined([*piece, word]))) > 1):
            yield piece[0].start_s, piece[-1].end_s, _joined(piece)
            piece = []
        piece.append(word)
    if piece:
        yield piece[0].start_s, piece[-1].end_s, _joined(piece)


def _ends(piece: Sequence[_Word], word: _Word) -> bool:
    return piece[-1].text[-1] in ".!?。！？" or word.start_s > piece[-1].end_s + 1.0


def _joined(words: Sequence[_Word]) -> str:
    return "".join(" " * word.spaced + word.text for word in words).strip()
