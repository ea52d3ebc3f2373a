"""What is asked of aac-metrics and made of its answers: with a stand-in for it, and with itself where it is there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from dasheng_edge.quant.compare import aac_scores
from dasheng_edge.quant.compare.aac_scores import AAC_METRICS, check_references, extra_scores
from dasheng_edge.quant.compare.bootstrap import draws_of
from dasheng_edge.quant.compare.text_scores import score_texts
from dasheng_edge.runtime.clips.clips import Clip
from dasheng_edge.runtime.errors import ClipsError, MissingExtraError

REFERENCES = [["a dog barks", "a dog"], ["rain falls"], ["a siren wails"], ["wind blows"]]
Evaluated = tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]


class Library(ModuleType):
    """`evaluate` as aac-metrics 0.6 has it: a text's score is its number of words, times the metric's place."""

    def __init__(self) -> None:
        super().__init__("aac_metrics")
        self.asked: list[tuple[list[str], list[list[str]], bool, list[str]]] = []

    def evaluate(
        self,
        candidates: list[str],
        mult_references: list[list[str]],
        preprocess: bool = True,
        metrics: Sequence[str] = ("default",),
    ) -> Evaluated:
        self.asked.append((candidates, mult_references, preprocess, list(metrics)))
        scores = {}
        for name in ("sbert_sim", *metrics):  # each brings what it is made of along
            factor = 1.0 + ["sbert_sim", *AAC_METRICS].index(name)
            scores[name] = factor * np.array([len(text.split()) for text in candidates], np.float64)
        return {name: values.mean() for name, values in scores.items()}, scores


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    stand_in = Library()
    monkeypatch.setitem(sys.modules, "aac_metrics", stand_in)
    return stand_in


def test_the_scores_of_clips_and_their_intervals(library: Library) -> None:
    answers = ["a b c", "a", "a b", "a b"]
    scores = extra_scores(answers, REFERENCES)
    assert list(scores) == ["fense", "cider_d_ptb", "spider_fl"]
    drawn = np.array([3.0, 1, 2, 2])[draws_of(4)].mean(axis=1)
    for factor, score in zip((2, 3, 4), scores.values(), strict=True):
        assert score.value.value == 2.0 * factor
        assert (score.value.low, score.value.high) == pytest.approx(factor * np.percentile(drawn, (2.5, 97.5)))
        assert (score.change, score.clips, score.better) == (None, 4, "higher")


def test_changes_are_paired_by_clip(library: Library) -> None:
    score = extra_scores(["a b c d", "a b", "a b c", "a b"], REFERENCES, ["fense"], ["a b c", "a", "a b", "a"])["fense"]
    assert score.change is not None
    assert (score.change.low, score.change.value, score.change.high) == (2.0, 2.0, 2.0)  # one word more in each


def test_what_the_library_is_given(library: Library) -> None:
    extra_scores(["A dog,\n  barking.", "", "x", " \n"], [["One\ntwo", ""], *REFERENCES[1:]], ["fense", "spider_fl"])
    texts = ["A dog, barking.", ".", "x", "."]  # no line break, and no line that is empty
    references = [["One two", "."], *REFERENCES[1:]]
    assert library.asked == [(texts, references, False, ["fense"]), (texts, references, True, ["spider_fl"])]


@pytest.mark.parametrize("references", [REFERENCES[:1], [*REFERENCES[:3], []]])
def test_too_little_to_score(library: Library, references: list[list[str]]) -> None:
    with pytest.raises(ClipsError, match=r"at least two clips, each with a reference; got \d, [01] without"):
        extra_scores(["x"] * len(references), references)


def test_whether_there_is_enough_to_score_can_be_asked_before() -> None:
    check_references(REFERENCES[:2])
    with pytest.raises(ClipsError, match=r"at least two clips, each with a reference; got 0, 0 without"):
        check_references([])


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aac_metrics", None)
    with pytest.raises(MissingExtraError, match=r"environment of its own.*pip install .*\[metrics\]"):
        extra_scores(["x"] * 4, REFERENCES)


@pytest.mark.parametrize("error", [OSError("undefined symbol: torch"), RuntimeError("operator does not exist")])
def test_a_library_that_does_not_fit(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(aac_scores, "import_module", fail)
    with pytest.raises(MissingExtraError, match=rf"cannot be imported \({error}\).* pip install"):
        extra_scores(["x"] * 4, REFERENCES)


@pytest.mark.parametrize(
    "error", [FileNotFoundError("no stanford-corenlp-3.4.1.jar"), RuntimeError("Invalid Java"), ValueError("java path")]
)
def test_what_the_library_lacks(error: Exception, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Evaluated:
        raise error

    monkeypatch.setattr(library, "evaluate", fail)
    with pytest.raises(
        MissingExtraError, match=rf"cannot compute fense: {error}; run aac-metrics-download, once; .*Java"
    ):
        extra_scores(["x"] * 4, REFERENCES)


def real_library() -> ModuleType:
    library: ModuleType = pytest.importorskip(
        "aac_metrics", reason="it needs an environment of its own", exc_type=ImportError
    )
    return library


def test_cider_d_and_rouge_l_are_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    library = real_library()
    answers = ["a dog barks loudly", "rain falls on a roof", "", "wind blows"]
    clips = [Clip(str(i), Path("x"), references=tuple(texts)) for i, texts in enumerate(REFERENCES)]
    ours = score_texts(clips, {str(i): text for i, text in enumerate(answers)}, None)
    rouge: Callable[..., Evaluated] = library.functional.rouge_l
    assert ours["rouge_l"].value.value == pytest.approx(float(rouge(answers, REFERENCES)[0]["rouge_l"]), rel=1e-12)
    monkeypatch.setattr(aac_scores, "_NEEDS_PTB", frozenset())  # these texts are split already; it would need Java
    theirs = extra_scores(answers, REFERENCES, ["cider_d"])["cider_d_ptb"]
    assert ours["cider_d"].value.value == pytest.approx(theirs.value.value, rel=1e-12)
    assert (ours["cider_d"].value.low, ours["cider_d"].value.high) == pytest.approx(
        (theirs.value.low, theirs.value.high)
    )
