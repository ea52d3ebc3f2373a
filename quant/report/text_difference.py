"""What differs between two texts, word by word, for showing it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

# White space stays with the word that follows. Chinese, Japanese and Korean are compared character by character, as
# words are not separated there; punctuation is apart, so that a full stop does not change the word before it.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_TOKEN = re.compile(rf"\s*(?:[{_CJK}]|[^\W{_CJK}]+(?:['’-][^\W{_CJK}]+)*|\S)|\s+\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

Kind = Literal["same", "removed", "added"]


@dataclass(frozen=True)
class Piece:
    """A run of words: in both texts, in the reference's alone ("removed"), or in the other's alone ("added")."""

    kind: Kind
    text: str

    @property
    def words(self) -> str:
        return self.text.lstrip()

    @property
    def space(self) -> str:
        """What stands before the words, which no mark should cover."""
        return self.text[: len(self.text) - len(self.words)]


def difference(reference: str, text: str) -> tuple[Piece, ...]:
    """How a text departs from the reference's.

    What is "same" or "added" makes up `text`, character by character; what is "same" or "removed" makes up
    `reference` but for white space. Where words are replaced, the removed ones come first.
    """
    old, new = _TOKEN.findall(reference), _TOKEN.findall(text)
    # `autojunk` would take frequent words of long texts for noise.
    matcher = SequenceMatcher(None, [word.strip() for word in old], [word.strip() for word in new], autojunk=False)
    pieces: list[Piece] = []
    for tag, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        if tag == "equal":
            pieces.append(Piece("same", "".join(new[new_start:new_end])))
            continue
        if old_start < old_end:
            pieces.append(Piece("removed", "".join(old[old_start:old_end])))
        if new_start < new_end:
            pieces.append(Piece("added", "".join(new[new_start:new_end])))
    return tuple(pieces)


def visible(text: str) -> str:
    """A text whose control characters are shown as symbols, as no browser shows them; line breaks stay."""
    return _CONTROL.sub(lambda found: chr(0x2400 + ord(found[0])) if found[0] != "\x7f" else "␡", text)
