"""Scores of answers: by hand where they are simple, by another implementation of the formula where not."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.micro.captions import STEMS, named_kinds
from dasheng_edge.quant.clips import Clip
from dasheng_edge.quant.text_scores import plain_events, read_events, score_texts, words
from dasheng_edge.runtime.errors import ClipsError

HERE = Path("x.wav")


def scene(name: str, *references: str, events: tuple[str, ...] | None = None) -> Clip:
    return Clip(name, HERE, references=references, events=frozenset(events) if events is not None else None)


def test_only_what_the_clips_state_is_scored() -> None:
    assert score_texts([Clip("a", HERE)], {"a": "x"}, None) == {}
    assert set(score_texts([Clip("a", HERE, transcript="x")], {"a": "x"}, None)) == {"word_error_rate", "exact_match"}
    assert set(score_texts([scene("a", "rain")], {"a": "x"}, None)) == {"exact_match", "rouge_l"}
    both = [scene("a", "rain"), scene("b", "wind")]
    assert set(score_texts(both, {"a": "x", "b": "x"}, None)) == {"exact_match", "rouge_l", "cider_d"}


def test_word_errors_are_edits_over_words() -> None:
    clips = [
        Clip("a", HERE, transcript="one two three"),
        Clip("b", HERE, transcript="Four, five!"),
        Clip("c", HERE, transcript="six"),
    ]
    score = score_texts(clips, {"a": "one too three", "b": "four FIVE", "c": ""}, None)["word_error_rate"]
    assert score.value.value == pytest.approx(2 / 6)
    assert (score.better, score.clips, score.change) == ("lower", 3, None)


def test_events_count_what_is_missed_and_what_is_added(tmp_path: Path) -> None:
    (tmp_path / "events.json").write_text(json.dumps(STEMS))
    events = read_events(tmp_path / "events.json")
    clips = [scene("a", events=("rain", "dog bark")), scene("b", events=("siren",)), scene("c", events=())]
    texts = {"a": "rain pours while a siren wails", "b": "a siren", "c": "nothing"}
    score = score_texts(clips, texts, {**texts, "b": "wind blows"}, events)["event_f1"]
    assert score.value.value == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert score.change is not None
    assert score.change.value == pytest.approx(4 / 6 - 2 / 6)
    for text in (*texts.values(), "a dog barks, followed by glass breaking"):
        assert {label for label, pattern in events.items() if pattern.search(text)} == named_kinds(text)


def test_labels_are_their_own_words_where_there_is_no_vocabulary() -> None:
    (pattern,) = plain_events([scene("a", events=("church bell",))]).values()
    assert pattern.search("The bells of a CHURCH ring")
    assert not pattern.search("a churchyard bell")


def test_wrong_event_files(tmp_path: Path) -> None:
    for text in ("[]", "{", '{"a": "("}', '{"a": 1}'):
        (tmp_path / "events.json").write_text(text)
        with pytest.raises(ClipsError, match="cannot read the events of"):
            read_events(tmp_path / "events.json")


def longest_common(first: list[str], second: list[str]) -> int:
    """By trying all subsequences."""
    for size in range(len(first), 0, -1):
        for picked in itertools.combinations(first, size):
            rest = iter(second)
            if all(word in rest for word in picked):
                return size
    return 0


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.lists(st.sampled_from("abc"), min_size=1, max_size=6)
)
def test_rouge_l_is_its_formula(truth: list[str], said: list[str]) -> None:
    score = score_texts([scene("a", " ".join(truth))], {"a": " ".join(said)}, None)["rouge_l"].value.value
    common = longest_common(truth, said)
    precision, recall = common / len(said), common / len(truth)
    want = 2.44 * precision * recall / (recall + 1.44 * precision) if common else 0.0
    assert score == pytest.approx(want)


def cider_d(candidates: list[str], references: list[list[str]]) -> float:
    """Vedantam et al. 2015, section 6, written as the sums stand there."""
    documents = len(references)
    total = 0.0
    for said, truths in zip(candidates, references, strict=True):
        for n, truth in itertools.product(range(1, 5), truths):

            def grams(text: str, n: int = n) -> Counter[str]:
                split = text.split()
                return Counter(" ".join(split[i : i + n]) for i in range(len(split) - n + 1))

            def idf(gram: str, grams: object = grams) -> float:
                seen = sum(any(gram in grams(text) for text in texts) for texts in references)  # type: ignore[operator]
                return math.log(documents / max(1, seen))

            have, want = grams(said), grams(truth)
            top = sum(min(have[g], want[g]) * want[g] * idf(g) ** 2 for g in have)
            norms = [math.sqrt(sum((count * idf(g)) ** 2 for g, count in one.items())) for one in (have, want)]
            penalty = math.exp(-((len(said.split()) - len(truth.split())) ** 2) / (2 * 6**2))
            if all(norms):
                total += penalty * top / (norms[0] * norms[1]) / 4 / len(truths)
    return 10 * total / documents


def test_cider_d_is_its_formula() -> None:
    references = [
        ["a dog barks while rain falls", "rain and a dog"],
        ["a siren wails"],
        ["wind blows", "the wind blows hard"],
    ]
    texts = ["a dog barks and rain falls", "a siren wails", "rain"]
    clips = [scene(str(i), *truths) for i, truths in enumerate(references)]
    got = score_texts(clips, {str(i): text for i, text in enumerate(texts)}, None)["cider_d"].value.value
    assert got == pytest.approx(cider_d(texts, references))


def test_words() -> None:
    assert words("It's 4 O'CLOCK — rain, rain!") == ["it's", "4", "o'clock", "rain", "rain"]
    assert words("雨が降る _x_") == ["雨が降る", "x"]
