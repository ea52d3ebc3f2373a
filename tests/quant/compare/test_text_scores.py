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

from benchmarks.micro.scenes.captions import STEMS, named_kinds
from dasheng_edge.quant.compare.text_scores import check_events, plain_events, read_events, score_texts, tokens, words
from dasheng_edge.runtime.clips.clips import Clip
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


def test_words_are_those_that_a_reader_takes_for_the_same() -> None:
    assert words("The dogs’ owner’s cafe\u0301 \uff21\uff22\uff11, 'quoted'") == [
        "the",
        "dogs",
        "owner's",
        "café",
        "ab1",
        "quoted",
    ]
    assert words("बारिश हो रही है") == ["बारिश", "हो", "रही", "है"]  # vowel signs are parts of words
    assert words("_ — … '") == []


def test_what_is_spoken_without_spaces_is_scored_by_characters() -> None:
    clips = [Clip("zh", HERE, transcript="今天下雨，很大。"), Clip("en", HERE, transcript="it rains")]
    scores = score_texts(clips, {"zh": "今天下雪 很大", "en": "it rains hard"}, None)
    assert scores["character_error_rate"].value.value == pytest.approx(1 / 6)
    assert scores["word_error_rate"].value.value == pytest.approx(1 / 2)
    assert (scores["character_error_rate"].clips, scores["word_error_rate"].clips) == (1, 1)
    assert scores["character_error_rate"].better == "lower"


def test_an_empty_answer_misses_every_word_and_an_added_one_counts() -> None:
    clips = [Clip("a", HERE, transcript="one two three"), Clip("b", HERE, transcript=" ")]
    assert score_texts(clips, {"a": "", "b": ""}, None)["word_error_rate"].value.value == 1.0
    assert score_texts(clips, {"a": "one two three", "b": "x"}, None)["word_error_rate"].value.value == 1 / 3


def test_what_is_no_number_is_not_stated() -> None:
    silent = [Clip("a", HERE, events=frozenset(), transcript="..."), Clip("b", HERE, events=frozenset())]
    assert set(score_texts(silent, {"a": "x", "b": "y"}, None)) == {"exact_match"}
    perfect = [scene("a", "rain falls"), scene("b", "wind")]
    assert score_texts(perfect, {"a": "rain falls", "b": "wind"}, None)["cider_d"].value.value > 0


def test_exact_match_is_with_any_truth() -> None:
    clips = [scene("a", "Rain.", "Wind!"), Clip("b", HERE, transcript="4, 0"), scene("c", "rain")]
    score = score_texts(clips, {"a": "wind", "b": "4 0", "c": "rain falls"}, None)["exact_match"]
    assert score.value.value == pytest.approx(2 / 3)


def test_changes_are_paired_by_clip() -> None:
    clips = [Clip(str(i), HERE, transcript=" ".join("abcdefgh"[: 1 + i % 8])) for i in range(40)]
    texts = {clip.id: clip.transcript or "" for clip in clips}
    same = score_texts(clips, texts, texts)["word_error_rate"].change
    assert same is not None
    assert (same.low, same.value, same.high) == (0.0, 0.0, 0.0)
    worse = score_texts(clips, {**texts, "0": "x"}, texts)["word_error_rate"].change
    assert worse is not None
    assert worse.value == pytest.approx(1 / 180)
    assert worse.low == 0.0 < worse.value < worse.high


@pytest.mark.parametrize(
    ("label", "named", "silent"),
    [
        ("dog bark", "BARKS of two dogs", "a dogged barking"),
        ("dog_bark", "a dog's bark", "dogs barking"),
        ("火车", "一列火车经过", "汽车着火"),
        ("C++", "in c it is", "music"),
        ("♪", "a tune ♪ plays", "a tune"),
    ],
)
def test_labels_in_texts(label: str, named: str, silent: str) -> None:
    clips = [scene("a", events=(label,)), scene("b", events=())]
    assert score_texts(clips, {"a": named, "b": silent}, None)["event_f1"].value.value == 1.0
    assert score_texts(clips, {"a": silent, "b": silent}, None)["event_f1"].value.value == 0.0


def test_expressions_of_ideographs_need_no_spaces(tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    path.write_text("\ufeff" + json.dumps({"rain": "rain(s|ing)?|下雨", "dog": "dogs?"}), "utf-8")
    events = read_events(path)
    assert events["rain"].search("今天下雨了")
    assert events["dog"].search("狗dog叫")
    assert not events["rain"].search("a train, rained on")
    assert not events["dog"].search("hot-dogging")


def test_events_that_no_text_could_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "events.json").write_text('{"rain": "rain", "dog": "dogs?"}')
    events = read_events(tmp_path / "events.json")
    check_events([scene("a", events=("dog",)), scene("b", "no event known")], events)
    clips = [scene("a", events=("dog", "whale"))]
    with pytest.raises(ClipsError, match=r"clip a has the event 'whale', which the file .*use one of dog, rain"):
        score_texts(clips, {"a": "a whale"}, None, events)


@pytest.mark.parametrize("text", ['{"a": "x{99999999999}"}', "[" * 200_000, '{"a": "' + "(" * 5000 + '"}', "\xff"])
def test_event_files_that_break_readers(tmp_path: Path, text: str) -> None:
    (tmp_path / "events.json").write_text(text, "latin-1")
    with pytest.raises(ClipsError, match="cannot read the events of"):
        read_events(tmp_path / "events.json")
    with pytest.raises(ClipsError, match="expected a JSON object of label: regular expression"):
        read_events(tmp_path / "missing.json")


def test_rouge_l_takes_the_best_precision_and_the_best_recall() -> None:
    # Of "a b c d": precision 3/4 with the first reference, 1/4 with the second; recall 3/6 and 1/1.
    score = score_texts([scene("a", "a b c x y z", "d")], {"a": "a b c d"}, None)["rouge_l"]
    assert score.value.value == pytest.approx(2.44 * 0.75 * 1 / (1 + 1.44 * 0.75))
    assert score_texts([scene("a", "a b")], {"a": ""}, None)["rouge_l"].value.value == 0.0


CAPTION = st.lists(st.sampled_from("abcde"), min_size=1, max_size=9).map(" ".join)


@given(st.lists(st.tuples(CAPTION, st.lists(CAPTION, min_size=1, max_size=3)), min_size=2, max_size=5))
def test_cider_d_of_any_texts(rows: list[tuple[str, list[str]]]) -> None:
    clips = [scene(str(i), *truths) for i, (_, truths) in enumerate(rows)]
    got = score_texts(clips, {str(i): said for i, (said, _) in enumerate(rows)}, None)["cider_d"].value.value
    assert got == pytest.approx(cider_d([said for said, _ in rows], [truths for _, truths in rows]), abs=1e-9)


def test_a_word_said_over_and_over_counts_as_often_as_it_should_be_said() -> None:
    clips = [scene("a", "rain falls"), scene("b", "wind")]

    def score(text: str) -> float:
        return score_texts(clips, {"a": text, "b": "x"}, None)["cider_d"].value.value

    assert score("rain rain rain falls") < score("rain falls")
    assert score("rain rain rain") < score("rain")


def test_characters_of_scripts_without_spaces_are_words_of_wording() -> None:
    assert tokens("3人が、人々と") == ["3", "人", "が", "人", "々", "と"]
    assert tokens("狗dog叫 today") == ["狗", "dog", "叫", "today"]
    assert tokens("미안해 it's") == ["미안해", "it's"]  # Korean has spaces


@given(st.text(st.characters(max_codepoint=0x2DFF)))
def test_wording_with_spaces_is_compared_by_words(text: str) -> None:
    assert tokens(text) == words(text)


def test_wording_of_scripts_without_spaces_is_scored_by_characters() -> None:
    clips = [scene("a", "今天下雨，很大。"), scene("b", "狗在叫")]
    scores = score_texts(clips, {"a": "今天下雨很大", "b": "猫在叫"}, None)
    assert scores["exact_match"].value.value == 0.5  # punctuation is none of the wording
    assert scores["rouge_l"].value.value == pytest.approx((1 + 2 / 3) / 2)
    spaced = [scene("a", "今 天 下 雨 很 大"), scene("b", "狗 在 叫")]
    want = score_texts(spaced, {"a": "今 天 下 雨 很 大", "b": "猫 在 叫"}, None)["cider_d"].value.value
    assert scores["cider_d"].value.value == want > 5
    assert score_texts(clips, {"a": "x", "b": "猫在叫"}, None)["cider_d"].value.value > 0


@pytest.mark.parametrize("spoken", ["今天下雨很大", "雨が降っている"])
def test_speech_of_scripts_without_spaces_is_scored_by_characters(spoken: str) -> None:
    scores = score_texts([Clip("a", HERE, transcript=spoken)], {"a": spoken[:-1]}, None)
    assert set(scores) == {"character_error_rate", "exact_match"}
    assert scores["character_error_rate"].value.value == pytest.approx(1 / len("".join(words(spoken))))


@pytest.mark.parametrize(
    ("label", "named", "silent"),
    [
        ("church bells", "a church bell rings", "a bel in a church"),
        ("glass", "a glass breaks", "gla"),
        ("bus", "a bus", "but"),
        ("dog's bark", "a dog’s bark", "a dog barks"),
        ("dog’s bark", "the dog's bark", "a dog barks"),
        ("dog", "a \uff44\uff4f\uff47 barks", "\uff43\uff41\uff54"),  # full width
        ("…", "well …", "well"),
    ],
)
def test_labels_as_people_write_them(label: str, named: str, silent: str) -> None:
    clips = [scene("a", events=(label,)), scene("b", events=())]
    assert score_texts(clips, {"a": named, "b": silent}, None)["event_f1"].value.value == 1.0


def test_expressions_are_found_in_either_form(tmp_path: Path) -> None:
    (tmp_path / "events.json").write_text(json.dumps({"door": "someone’s door", "rain": "rain"}))
    events = read_events(tmp_path / "events.json")
    clips = [scene("a", events=("door", "rain")), scene("b", events=("door",))]
    texts = {"a": "someone’s door, \uff32\uff21\uff29\uff2e", "b": "someone's door"}
    assert score_texts(clips, texts, None, events)["event_f1"].value.value == 1.0
