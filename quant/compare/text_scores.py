"""Greedy answers against what a manifest of clips states: words, events, wording. Needs no Java and no downloads.

Texts are compared as words: lower case, without punctuation. That is not the tokenisation of published captioning
scores (PTB) nor the normalisation of MiDashengLM's published word error rates (Whisper's, which also spells out
contractions, numbers and British spellings in one way), so these numbers compare the candidates of one report, not one
report with a paper. In Chinese and Japanese, each character counts as a word. Unlike in the
published evaluation, an empty answer counts, as one that misses everything.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import jiwer
import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.bundle.manifest import UNREADABLE
from dasheng_edge.runtime.clips.clips import Clip
from dasheng_edge.runtime.errors import ClipsError

from .bootstrap import task_score
from .record import TaskScore

Sums = NDArray[np.float64]
Patterns = Mapping[str, re.Pattern[str]]
Better = Literal["higher", "lower"]
ROUGE_BETA = 1.2  # of the COCO caption code: recall counts for a little more than precision
CIDER_N, CIDER_SIGMA = 4, 6.0  # n-grams, and the width of its length penalty, in words
# Chinese and Japanese, which put no spaces between words: ideographs with their iteration marks, and kana.
_UNSPACED = r"\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHARACTER = re.compile(f"[{_UNSPACED}]")
_TOKEN = re.compile(f"[{_UNSPACED}]|[^{_UNSPACED}]+")
# Where a word may begin or end: at no letter or digit, but next to a character of these scripts.
_BEGIN, _END = rf"(?<![^\W{_UNSPACED}])", rf"(?![^\W{_UNSPACED}])"


def words(text: str) -> list[str]:
    """Lower-case words, without punctuation; what Unicode takes for the same characters is the same (NFKC)."""
    # Letters, marks (vowels of Indic scripts are some) and numbers.
    kept = "".join(
        sign if unicodedata.category(sign)[0] in "LMN" or sign == "'" else " " for sign in _plain(text).lower()
    )
    return [word for part in kept.split() if (word := part.strip("'"))]


def tokens(text: str) -> list[str]:
    """The words, and in Chinese and Japanese each character: what wording is compared by."""
    return [token for word in words(text) for token in _TOKEN.findall(word)]


def _plain(text: str) -> str:
    """What Unicode takes for the same characters is the same (NFKC), and so are apostrophes."""
    return unicodedata.normalize("NFKC", text).replace("’", "'")


def read_events(path: Path) -> Patterns:
    """A JSON object: label -> regular expression that finds it in a text, as whole words, in any case.

    Chinese and Japanese characters need no spaces around them. Full-width and half-width letters, and
    either apostrophe, are the same in texts; expressions may have either apostrophe.

    Raises:
        ClipsError: it cannot be read, or an expression is wrong.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(raw, dict) or not all(isinstance(pattern, str) for pattern in raw.values()):
            raise TypeError("it is no object of texts")  # noqa: TRY301
        # NFC, since NFKC would make operators of what is none: of a full-width question mark, say.
        plain = {label: unicodedata.normalize("NFC", pattern).replace("’", "'") for label, pattern in raw.items()}
        return {label: re.compile(f"{_BEGIN}(?:{pattern}){_END}", re.IGNORECASE) for label, pattern in plain.items()}
    except (*UNREADABLE, TypeError, OverflowError, re.error) as error:
        raise ClipsError(
            f"cannot read the events of {path}: {error}; expected a JSON object of label: regular expression"
        ) from error


def plain_events(clips: Sequence[Clip]) -> Patterns:
    """Without a file of events: a label is found by its own words, each with or without an s, in any order."""
    patterns = {}
    for label in sorted({event for clip in clips for event in clip.events or ()}):
        parts = words(label) or [_plain(label)]  # a label of punctuation alone is looked for as it stands
        look = "".join(f"(?=.*{_BEGIN}{re.escape(_singular(part))}s?{_END})" for part in parts)
        patterns[label] = re.compile(f"^{look}", re.IGNORECASE | re.DOTALL)
    return patterns


def _singular(word: str) -> str:
    """Without a last s, as far as that is likely to be a plural's: of bells, not of glass, gas or bus."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def check_events(clips: Sequence[Clip], events: Patterns) -> None:
    """Refuse clips whose events no text could name.

    Raises:
        ClipsError: an event of a clip is not in the vocabulary.
    """
    for clip in clips:
        if unknown := sorted((clip.events or frozenset()) - events.keys()):
            raise ClipsError(
                f"clip {clip.id} has the event {unknown[0]!r}, which the file of events does not list; add it there, "
                f"or use one of {', '.join(sorted(events))}"
            )


def score_texts(
    clips: Sequence[Clip], texts: Mapping[str, str], reference: Mapping[str, str] | None, events: Patterns | None = None
) -> dict[str, TaskScore]:
    """Scores of answers, by clip id, for which the clips state what is needed.

    `reference` are the reference model's answers, which changes are taken against. Chinese and Japanese speech
    is scored by characters, as published.

    Raises:
        ClipsError: an event of a clip is not in the vocabulary.
    """
    scores: dict[str, TaskScore] = {}
    patterns = plain_events(clips) if events is None else events
    check_events(clips, patterns)
    transcribed = [clip for clip in clips if clip.transcript is not None]
    unspaced = [clip for clip in transcribed if _CHARACTER.search(clip.transcript or "")]
    spoken = [clip for clip in transcribed if clip not in unspaced]
    some_spoken = any(words(clip.transcript or "") for clip in spoken)
    labelled = [clip for clip in clips if clip.events is not None]
    some_heard = any(clip.events for clip in labelled)
    worded = [clip for clip in clips if clip.references]
    known = [clip for clip in clips if clip.references or clip.transcript is not None]
    cider = _Cider(worded)
    measures: list[tuple[str, list[Clip], Better, Callable[[Clip, str], tuple[float, float]]]] = [
        ("word_error_rate", spoken if some_spoken else [], "lower", _word_errors),
        ("character_error_rate", unspaced, "lower", _character_errors),
        ("event_f1", labelled if some_heard else [], "higher", lambda clip, text: _events_found(clip, text, patterns)),
        ("exact_match", known, "higher", _exact),
        ("rouge_l", worded, "higher", _rouge),
        # Of one clip, every n-gram is in all documents and weighs nothing.
        ("cider_d", worded if len(worded) > 1 else [], "higher", cider.score),
    ]
    for name, judged, better, measure in measures:
        if not judged:
            continue
        got = [measure(clip, texts[clip.id]) for clip in judged]
        want = None if reference is None else [measure(clip, reference[clip.id]) for clip in judged]
        scores[name] = task_score(got, want, better)
    return scores


def _word_errors(clip: Clip, text: str) -> tuple[float, float]:
    return _edits(words(clip.transcript or ""), words(text))


def _character_errors(clip: Clip, text: str) -> tuple[float, float]:
    return _edits(list("".join(words(clip.transcript or ""))), list("".join(words(text))))


def _edits(spoken: list[str], said: list[str]) -> tuple[float, float]:
    """Edits that make what is said of what was spoken, and how much was spoken: words, or characters."""
    if not spoken:
        return float(len(said)), 0.0
    edits = jiwer.process_words(" ".join(spoken), " ".join(said))
    return float(edits.substitutions + edits.deletions + edits.insertions), float(len(spoken))


def _events_found(clip: Clip, text: str, patterns: Patterns) -> tuple[float, float]:
    """2 TP and 2 TP + FP + FN; what a text may name falsely is the labels that there are patterns for."""
    plain = _plain(text)
    named = {label for label, pattern in patterns.items() if pattern.search(plain)}
    wanted = clip.events or frozenset()
    return 2.0 * len(named & wanted), float(len(named) + len(wanted))


def _exact(clip: Clip, text: str) -> tuple[float, float]:
    truths = [*clip.references, *([clip.transcript] if clip.transcript is not None else [])]
    return float(any(tokens(text) == tokens(truth) for truth in truths)), 1.0


def _rouge(clip: Clip, text: str) -> tuple[float, float]:
    """ROUGE-L of Lin 2004: F of the longest common subsequence; best precision and best recall over references."""
    said = tokens(text)
    pairs = [(tokens(reference), _common(tokens(reference), said)) for reference in clip.references]
    precision = max(common / len(said) if said else 0.0 for _, common in pairs)
    recall = max(common / len(truth) if truth else 0.0 for truth, common in pairs)
    if not precision or not recall:
        return 0.0, 1.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision), 1.0


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for index, other in enumerate(second):
            above = row[index + 1]
            row[index + 1] = before + 1 if word == other else max(above, row[index])
            before = above
    return row[-1]


class _Cider:
    """CIDEr-D of Vedantam et al. 2015: tf-idf cosine of n-grams, clipped, times a penalty on length; times 10.

    Document frequencies are over the clips' references, and stay as they are when clips are drawn.
    """

    def __init__(self, clips: Sequence[Clip]) -> None:
        self._documents = max(len(clips), 1)
        self._frequency: Counter[tuple[str, ...]] = Counter()
        for clip in clips:
            self._frequency.update({gram for text in clip.references for gram in _grams(tokens(text))})

    def score(self, clip: Clip, text: str) -> tuple[float, float]:
        said = self._vectors(tokens(text))
        values = [self._similarity(said, self._vectors(tokens(truth))) for truth in clip.references]
        return 10.0 * float(np.mean(values)), 1.0

    def _vectors(self, said: list[str]) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        """tf-idf by n, their norms, and the number of words."""
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(CIDER_N)]
        for gram, count in _grams(said).items():
            inverse = np.log(self._documents) - np.log(max(1.0, self._frequency[gram]))
            vectors[len(gram) - 1][gram] = count * float(inverse)
        norms = [float(np.sqrt(sum(value**2 for value in vector.values()))) for vector in vectors]
        return vectors, norms, len(said)

    @staticmethod
    def _similarity(
        said: tuple[list[dict[tuple[str, ...], float]], list[float], int],
        truth: tuple[list[dict[tuple[str, ...], float]], list[float], int],
    ) -> float:
        penalty = float(np.exp(-((said[2] - truth[2]) ** 2) / (2 * CIDER_SIGMA**2)))
        total = 0.0
        for ours, theirs, norm, other in zip(said[0], truth[0], said[1], truth[1], strict=True):
            shared = sum(min(value, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram, value in ours.items())
            total += penalty * shared / (norm * other) if norm and other else 0.0
        return total / CIDER_N


def _grams(said: Sequence[str]) -> Counter[tuple[str, ...]]:
    """All n-grams of up to four words."""
    return Counter(tuple(said[start : start + n]) for n in range(1, CIDER_N + 1) for start in range(len(said) - n + 1))
