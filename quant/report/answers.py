"""What the models said about each clip, those that said the same together, and how it differs word by word."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from dasheng_edge.quant.compare.pareto import ordered
from dasheng_edge.quant.compare.record import ClipTexts, Report

# White space stays with the word that follows. Chinese, Japanese and Korean are compared character by character, as
# words are not separated there; punctuation is apart, so that a full stop does not change the word before it.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_TOKEN = re.compile(rf"\s*(?:[{_CJK}]|[^\W{_CJK}]+(?:['’-][^\W{_CJK}]+)*|\S)|\s+\Z")


@dataclass(frozen=True)
class Answer:
    """A text that some candidates gave, by number and name."""

    text: str
    candidates: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class ClipAnswers:
    """One clip: the reference model's text, who agrees with it, and the other texts, the most frequent first."""

    clip: ClipTexts
    reference: str | None  # None: it was not asked
    agreeing: tuple[tuple[int, str], ...]
    others: tuple[Answer, ...]

    @property
    def differing(self) -> int:
        """Candidates whose text is not the reference model's."""
        return sum(len(answer.candidates) for answer in self.others)


def side_by_side(report: Report) -> tuple[ClipAnswers, ...]:
    """All clips; those where most candidates differ first, then in their order."""
    numbers = [(number, candidate.name) for number, candidate in ordered(report)]
    clips = [_answers(clip, report.reference.name, numbers) for clip in report.clips]
    return tuple(sorted(clips, key=lambda clip: -clip.differing))


def _answers(clip: ClipTexts, reference: str, numbers: list[tuple[int, str]]) -> ClipAnswers:
    base = clip.texts.get(reference)
    by_text: dict[str, list[tuple[int, str]]] = {}
    for number, name in numbers:
        if name in clip.texts:
            by_text.setdefault(clip.texts[name], []).append((number, name))
    agreeing = by_text.pop(base, []) if base is not None else []
    others = sorted(by_text.items(), key=lambda pair: -len(pair[1]))
    return ClipAnswers(clip, base, tuple(agreeing), tuple(Answer(text, tuple(who)) for text, who in others))


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
