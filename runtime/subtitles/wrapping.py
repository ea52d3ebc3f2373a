"""Text in lines: what of it can be shown, how wide it is, how long it takes to read, and where a line may end."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import NamedTuple

MAX_LINES = 2

# Controls, halves of surrogate pairs, what is no character, and what turns the direction of all that follows it.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufdd0-\ufdef\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)
_KANA = re.compile("[\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
_HAN = re.compile("[\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd]")
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]")
_MARKS = ("Mn", "Me", "Mc")
_JOINERS = "\u200c\u200d\u0e33\u0eb3"  # and vowels of Thai and Lao
_FLAGS = range(0x1F1E6, 0x1F200)  # letters that make a flag in pairs
_BEHIND = (  # colours of skin, tags, vowels and ends of Hangul
    range(0x1F3FB, 0x1F400), range(0xE0020, 0xE0080), range(0x1160, 0x1200), range(0xD7B0, 0xD800),
    range(0xFF9E, 0xFFA0),
)  # fmt: skip
_LEADING = re.compile("[\u1100-\u115f\ua960-\ua97f]$")  # of Hangul
_VIRAMA = 9  # the class of marks that join two consonants of scripts of India
_NO_START = frozenset(",.:;!?%)]}»”’…、。，．：；！？）］｝」』】〉》〕ーゝゞ々・ぁぃぅぇぉっゃゅょァィゥェォッャュョ")
_NO_END = frozenset("([{«“‘（［｛「『【〈《〔")
_BEFORE = frozenset({  # conjunctions and prepositions, before which a line rather ends
    "and", "but", "or", "while", "as", "with", "followed", "by", "in", "on", "of", "over", "at", "from", "near",
    "before", "after", "that", "then",
})  # fmt: skip
_ARTICLES = frozenset({"a", "an", "the", "his", "her", "their"})


@dataclass(frozen=True)
class Limits:
    """What a line of a script may hold and how fast it is read, in columns: a wide character takes two.

    Netflix's guides: 42 letters and 17 a second; Chinese 16 and 9, Korean 16 and 12, Japanese 13 and 4. A character of
    those says as much as a syllable or a word, and is as wide as two letters.
    """

    columns: int
    columns_per_s: float


_LETTERS, _CHINESE, _KOREAN, _JAPANESE = Limits(42, 17), Limits(32, 18), Limits(32, 24), Limits(26, 8)


def limits(text: str) -> Limits:
    """The limits of a text: the strictest of the scripts in it."""
    return next(
        (found for script, found in ((_KANA, _JAPANESE), (_HAN, _CHINESE), (_HANGUL, _KOREAN)) if script.search(text)),
        _LETTERS,
    )


def shown(text: str) -> str:
    """A text without what cannot be shown, in one line with single spaces."""
    return " ".join(_UNSEEN.sub(" ", text).split())


def is_right_to_left(text: str) -> bool:
    """Whether its first letter is of a script that is written from right to left."""
    directions = (unicodedata.bidirectional(character) for character in text)
    return next((direction != "L" for direction in directions if direction in ("L", "R", "AL")), False)


def graphemes(text: str) -> list[str]:
    """What a reader takes for one character each: letters with their marks, emoji of several parts, flags."""
    if text.isascii():
        return list(text)
    found: list[str] = []
    for character in text:
        if found and _joins(found[-1], character):
            found[-1] += character
        else:
            found.append(character)
    return found


def _joins(before: str, character: str) -> bool:
    code = ord(character)
    return (
        before[-1] == "\u200d"
        or (unicodedata.category(character) == "Lo" and any(unicodedata.combining(one) == _VIRAMA for one in before))
        or (_LEADING.search(before) is not None and _HANGUL.match(character) is not None)
        or character in _JOINERS
        or unicodedata.category(character) in _MARKS
        or any(code in some for some in _BEHIND)
        or (code in _FLAGS and len(before) == 1 and ord(before) in _FLAGS)
    )


def columns(text: str) -> int:
    """How wide a text is; a wide character and an emoji take two."""
    return len(text) if text.isascii() else sum(map(_width, graphemes(text)))


def _width(grapheme: str) -> int:
    first = grapheme[0]
    wide = unicodedata.east_asian_width(first) in "WF" or ord(first) in _FLAGS or "\ufe0f" in grapheme
    return 2 if wide else 1


def reading_ms(lines: Sequence[str]) -> int:
    """How long lines have to stay to be read."""
    return math.ceil(sum(1000 * columns(line) / limits(line).columns_per_s for line in lines) - 1e-6)


def blocks(text: str) -> list[tuple[str, ...]]:
    """A text in blocks of one or two lines, each line within its limits.

    Lines end at spaces, or between wide characters, but not before closing punctuation; a word that is longer than a
    line is cut. Of two lines, the first rather ends behind punctuation or before a conjunction, and the shorter one is
    above.
    """
    most = limits(text).columns
    atoms = list(_atoms(text, most))
    found: list[tuple[str, ...]] = []
    while atoms:
        first = _filled(atoms, most)
        both = first if first == len(atoms) else first + _filled(atoms[first:], most)
        chosen, atoms = atoms[:both], atoms[both:]
        costs = {place: _badness(chosen, place, most) for place in range(1, both)} if both > first else {both: 0.0}
        cut = min(costs, key=costs.__getitem__)
        found.append(tuple(filter(None, (_joined(chosen[:cut]), _joined(chosen[cut:])))))
    return found


class _Atom(NamedTuple):
    """What is not cut."""

    text: str
    spaced: bool  # whether a space stands before it
    width: int


def _atoms(text: str, most: int) -> Iterator[_Atom]:
    for word in text.split():
        part, width, spaced = "", 0, True
        for grapheme in graphemes(word):
            wider = width + _width(grapheme)
            if part and (may_cut(part[-1], grapheme) or wider > most):
                yield _Atom(part, spaced, width)
                part, width, spaced = "", 0, False
            part += grapheme
            width += _width(grapheme)
        yield _Atom(part, spaced, width)


def may_cut(before: str, after: str) -> bool:
    """Whether a line may end between two characters of a word."""
    ideographs = any(script.search(before + after[0]) for script in (_KANA, _HAN))
    return ideographs and after[0] not in _NO_START and before not in _NO_END


def _joined(atoms: Sequence[_Atom]) -> str:
    return "".join(" " * atom.spaced + atom.text for atom in atoms).strip()


def _long(atoms: Sequence[_Atom]) -> int:
    """How wide a line of them is."""
    return sum(atom.width + atom.spaced for atom in atoms) - atoms[0].spaced


def _filled(atoms: Sequence[_Atom], most: int) -> int:
    """How many fit a line: one at least."""
    ends = accumulate(atom.width + (atom.spaced and at > 0) for at, atom in enumerate(atoms))
    return max(1, sum(1 for _ in takewhile(lambda end: end <= most, ends)))


def _badness(atoms: Sequence[_Atom], place: int, most: int) -> float:
    """Of a first line that ends there."""
    above, below = _long(atoms[:place]), _long(atoms[place:])
    if max(above, below) > most:
        return math.inf
    score = abs(above - below) / 2 + (4 if above > below else 0)
    after = atoms[place]
    return score + badness(atoms[place - 1].text, after.text, spaced=after.spaced)


def badness(before: str, after: str, *, spaced: bool) -> float:
    """Of an end between two words, in columns; below 0 where one is welcome."""
    score = 12.0 if before.lower() in _BEFORE | _ARTICLES else 0.0
    if before[-1] in _NO_START:
        score -= 12
    elif after.lower() in _BEFORE:
        score -= 4
    return score + (0 if spaced else 20)
