"""Whatever is said and whenever, cues keep the rules; what is said is shown once, near its time."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasheng_edge.runtime.errors import SubtitleError
from dasheng_edge.runtime.subtitles.cue import Change, Cue, Window
from dasheng_edge.runtime.subtitles.cues import cues
from dasheng_edge.runtime.subtitles.lint import lint
from dasheng_edge.runtime.subtitles.styles import STYLES, Style

PIECES = [
    "a dog barks", "an engine runs", " while ", ", followed by ", " and ", ", ", ". ", "; ", "birds", "x" * 90, "-->",
    "<b>", "&", "{\\an8}", "犬が吠えている", "一只狗在叫，同时发动机在运转。", "개가 짖는다", "כלב נובח", "كلب ينبح",
    "👩‍👩‍👧‍👦🇩🇪👍🏽", "e\u0301" * 50,
    "\u200b\u202e\ufeff", "\x00\x1b[2J\r\n\n", "\ud800", "。" * 60, "ก" * 99, "[", "…",
]  # fmt: skip
TEXTS = st.one_of(st.text(max_size=200), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
TIMES = st.one_of(st.floats(0, 120), st.floats(0, 1e6), st.just(359_999.9995))
LENGTHS = st.one_of(st.just(0.0), st.floats(-1, 60))
CHANGES = st.lists(st.builds(Change, TIMES, st.floats(0, 10)), max_size=5).map(tuple)
WINDOWS = st.lists(
    st.builds(lambda start, length, *rest: Window(start, start + length, *rest), TIMES, LENGTHS, TEXTS, CHANGES),
    max_size=6,
)


ANY_STYLE = st.sampled_from([*STYLES, Style("♪ ", " ♪", at_once=1, continues_s=0.1)])


def check_lint(windows: list[Window], speech: list[Window], style: str | Style) -> None:
    assert lint(cues(windows, style=style, speech=speech)) == []


test_cues_of_any_windows_pass_the_lint = settings(max_examples=80, deadline=None)(
    given(WINDOWS, WINDOWS, ANY_STYLE)(check_lint)
)
test_cues_of_very_many_windows_pass_the_lint = pytest.mark.slow(
    settings(max_examples=3000, deadline=None)(given(WINDOWS, WINDOWS, ANY_STYLE)(check_lint))
)


def lines_of(found: list[Cue]) -> list[tuple[str, ...]]:
    return [cue.lines for cue in found]


def test_each_sound_is_a_label_at_its_change() -> None:
    changes = (Change(2.5, 1.0), Change(4.0, 0.1), Change(7.25, 2.0))
    found = cues([Window(0, 10, "A dog barks while an engine runs, followed by glass breaking.", changes)])
    assert lines_of(found) == [("[dog barks]", "[engine running]"), ("[glass breaks]",)]
    assert [cue.start_s for cue in found] == [2.5, 7.25]


@pytest.mark.parametrize("hop_s", [30.0, 15.0, 5.0])
def test_windows_that_say_the_same_are_one_cue_and_what_goes_on_is_said_seldom(hop_s: float) -> None:
    said = [Window(at * hop_s, at * hop_s + 30, "Rain falls") for at in range(int(240 / hop_s))]
    found = cues(said)
    assert found[0].lines == ("[rain falling]",)
    assert {cue.lines for cue in found[1:]} == {("[rain continues]",)}
    assert min(after.start_s - before.start_s for before, after in pairwise(found)) >= 15
    assert lines_of(cues(said, style="plain")) == [("rain falling",)]


def test_a_short_sound_in_two_windows_that_overlap_is_said_once_where_both_lie() -> None:
    found = cues(
        [Window(0, 30, "wind blows"), Window(15, 45, "wind blows, then a dog barks"), Window(30, 60, "a dog barks")]
    )
    assert lines_of(found) == [("[wind blowing]",), ("[dog barks]",)]
    assert 30 <= found[1].start_s < 45


def test_sounds_that_come_back_are_said_again() -> None:
    found = cues([Window(0, 10, "a dog barks"), Window(10, 20, "wind blows"), Window(20, 30, "a dog is barking")])
    assert lines_of(found) == [("[dog barks]",), ("[wind blowing]",), ("[dog barks]",)]


@pytest.mark.parametrize(("window_s", "shown"), [(4.0, ["[wind blowing]"]), (10.0, ["[wind blowing]", "[dog barks]"])])
def test_of_short_windows_two_must_agree_where_two_overlap(window_s: float, shown: list[str]) -> None:
    said = ["wind blows", "wind blows, then a dog barks", "wind blows"]
    windows = [Window(at * window_s / 2, (at / 2 + 1) * window_s, text) for at, text in enumerate(said)]
    assert [line for cue in cues(windows) for line in cue.lines] == shown
    assert lines_of(cues([Window(0, window_s, "a dog barks")])) == [("[dog barks]",)]  # there is no other


def test_who_speaks_is_what_most_windows_say() -> None:
    said = ["a man speaks French", "a woman speaks French", "a woman speaks German", "a woman speaks French"]
    windows = [Window(2 * at, 2 * at + 4, text) for at, text in enumerate(said)]
    assert lines_of(cues(windows, style="plain")) == [("woman speaking French",)]
    two = [Window(0, 30, "a man speaks, followed by a woman speaking"), Window(15, 45, "a woman speaks")]
    assert lines_of(cues(two, style="plain")) == [("man speaking",), ("woman speaking",)]


def test_at_most_two_labels_at_once() -> None:
    found = cues([Window(0, 30, "a dog barks while rain falls and a bell rings and birds sing")])
    assert lines_of(found) == [("[dog barks]", "[rain falling]"), ("[bell ringing]", "[birds singing]")]
    alone = cues([Window(0, 30, "a dog barks while rain falls")], style=Style(at_once=1))
    assert lines_of(alone) == [("dog barks",), ("rain falling",)]


def test_the_style_sentence_leaves_sentences_whole() -> None:
    found = cues([Window(0, 5, "A dog barks while an engine runs in the background.")], style="sentence")
    assert [" ".join(cue.lines) for cue in found] == ["A dog barks while an engine runs in the background."]


@pytest.mark.parametrize(("window_s", "hop_s", "words"), [(4, 2, 7), (4, 2, 3), (4, 1, 6), (6, 2, 5), (10, 1, 7)])
def test_a_sentence_is_shown_in_its_window_or_left_out(window_s: int, hop_s: int, words: int) -> None:
    said = [" ".join([f"number{at}", *["word"] * words]) for at in range(30)]
    windows = [Window(hop_s * at, hop_s * at + window_s, text) for at, text in enumerate(said)]
    found = cues(windows, style="sentence")
    assert lint(found) == []
    assert len(found) >= 8
    for cue in found:
        window = windows[int(cue.lines[0].split()[0].removeprefix("number"))]
        assert window.start_s <= cue.start_s <= window.end_s


def test_speech_stands_beside_sounds_without_brackets_and_once() -> None:
    said = "the door is open and nobody is at home"
    speech = [Window(0, 30, f"Hello there. I think {said}."), Window(15, 45, f"think {said}. Who would have thought?")]
    found = cues([Window(0, 30, "a dog barks", (Change(3.0, 1.0),))], speech=speech)
    shown = [line for cue in found for line in cue.lines]
    assert "[dog barks]" in shown
    text = " ".join(line for line in shown if not line.startswith("["))
    assert text == f"Hello there. I think {said}. Who would have thought?"


def test_nothing_said_is_no_cue() -> None:
    assert cues([]) == cues([Window(0, 30, "")]) == cues([Window(0, 30, " \n\x00 . ")], style="sdh") == []


@pytest.mark.parametrize("time", [float("nan"), float("inf"), 1e9])
def test_times_that_are_none_are_refused(time: float) -> None:
    with pytest.raises(SubtitleError, match="expected times from 0"):
        cues([Window(0, time, "rain")])


def test_a_style_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(SubtitleError, match="sdh, sentence, plain"):
        cues([], style="SHD")


@pytest.mark.parametrize(
    ("cue", "fault"),
    [
        (Cue(0, 2, ()), "0 lines"),
        (Cue(0, 2, ("a", "b", "c")), "3 lines"),
        (Cue(0, 7, ("x" * 43,)), "43 characters"),
        (Cue(0, 7, ("狗" * 17,)), "34 characters; expected at most 32"),
        (Cue(0, 1, ("x" * 18,)), "takes 1059 ms"),
        (Cue(0, 0.829, ("a",)), "for 829 ms"),
        (Cue(0, 7.001, ("a",)), "for 7001 ms"),
        (Cue(-1, 1, ("a",)), "from 0 on"),
        (Cue(0, float("nan"), ("a",)), "from 0 on"),
        (Cue(0, 2, ("a\nb",)), "cannot be shown"),
        (Cue(0, 2, ("",)), "is empty"),
    ],
)
def test_the_lint_names_each_fault(cue: Cue, fault: str) -> None:
    (found,) = lint([cue])
    assert fault in found


@pytest.mark.parametrize(("gap_s", "faults"), [(0.082, 1), (0.083, 0), (-1.0, 1)])
def test_the_lint_wants_cues_in_order_and_apart(gap_s: float, faults: int) -> None:
    assert len(lint([Cue(10, 12, ("a",)), Cue(12 + gap_s, 14, ("b",))])) == faults
