"""What the models said about each clip, those that said the same together."""

from __future__ import annotations

from dataclasses import dataclass

from dasheng_edge.quant.compare.pareto import ordered
from dasheng_edge.quant.compare.record import ClipTexts, Report


@dataclass(frozen=True)
class Saying:
    """A text that some candidates gave, by number and name."""

    text: str
    candidates: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class ClipSayings:
    """One clip: the reference model's text, who agrees with it, and the other texts, the most frequent first."""

    clip: ClipTexts
    reference: str | None  # None: it was not asked
    agreeing: tuple[tuple[int, str], ...]
    others: tuple[Saying, ...]

    @property
    def differing(self) -> int:
        """Candidates whose text is not the reference model's."""
        return sum(len(saying.candidates) for saying in self.others)


def side_by_side(report: Report) -> tuple[ClipSayings, ...]:
    """All clips; those where most candidates differ first, then in their order."""
    numbers = [(number, candidate.name) for number, candidate in ordered(report)]
    found = [_sayings(clip, report.reference.name, numbers) for clip in report.clips]
    return tuple(sorted(found, key=lambda one: -one.differing))


def _sayings(clip: ClipTexts, reference: str, numbers: list[tuple[int, str]]) -> ClipSayings:
    base = clip.texts.get(reference)
    by_text: dict[str, list[tuple[int, str]]] = {}
    for number, name in numbers:
        if name in clip.texts:
            by_text.setdefault(clip.texts[name], []).append((number, name))
    agreeing = by_text.pop(base, []) if base is not None else []
    others = sorted(by_text.items(), key=lambda pair: -len(pair[1]))
    return ClipSayings(clip, base, tuple(agreeing), tuple(Saying(text, tuple(who)) for text, who in others))
