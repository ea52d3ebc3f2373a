"""What is said stands where it is said: each word once, in order, over the whole of its window."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasheng_edge.runtime.subtitles.cue import Change, Window
from dasheng_edge.runtime.subtitles.cues import cues
from dasheng_edge.runtime.subtitles.lint import lint
from dasheng_edge.runtime.subtitles.transcript import spoken

EDGE_S = 4.0  # of a window in which the last of its words may be over


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(4.0, 2.0), (10.0, 5.0), (30.0, 15.0), (30.0, 30.0)]),
    st.floats(0.3, 1.5),
    st.integers(20, 120),
    st.sampled_from(["", ".", ",", "!"]),
)
def test_overlapping_windows_give_each_word_once_near_its_time(
    shape: tuple[float, float], word_s: float, count: int, mark: str
) -> None:
    window_s, hop_s = shape
    words = [f"w{at}{mark if at % 9 == 8 else ''}" for at in range(count)]
    length_s, windows = count * word_s, []
    for start_s in [hop_s * at for at in range(int(length_s / hop_s) + 1)]:
        heard = [word for at, word in enumerate(words) if start_s <= at * word_s + 0.1 < start_s + window_s]
        windows.append(Window(start_s, start_s + window_s, " ".join(heard)))
    said = list(spoken(windows))
    assert " ".join(text for *_, text in said).split() == words
    assert lint(cues([], speech=windows)) == []
    late = [abs(start_s - words.index(text.split()[0]) * word_s) for start_s, _, text in said]
    assert max(late) <= window_s


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["one", "seven,", "houses.", "and", "a", "犬が", "שלום"]), min_size=15, max_size=60))
def test_what_fills_a_window_is_shown_up_to_its_end(words: list[str]) -> None:
    found = cues([], speech=[Window(0.0, 60.0, " ".join(words))])
    assert lint(found) == []
    assert " ".join(line for cue in found for line in cue.lines).split() == words
    assert found[-1].end_s >= 60.0 - EDGE_S
    assert len(found) >= 60 / 10


def test_what_is_said_lies_where_something_changes_and_no_other_window_hears_nothing() -> None:
    text = "It was late when they came home. Nobody had seen them."
    talking = tuple(Change(12.0 + at, 0.5) for at in range(6))
    ((start_s, *_), *_, (_, end_s, _)) = spoken([Window(0.0, 30.0, text, talking)])
    assert (start_s, end_s) == (12.0, 20.0)
    ((start_s, *_), *_, (_, end_s, _)) = spoken([Window(0, 30, ""), Window(15, 45, text), Window(40, 70, "")])
    assert (start_s, end_s) == (30.0, 40.0)


@pytest.mark.parametrize("text", ["a " * 2000, "一" * 2000, "👍" * 2000, "ก" * 2000, "x. " * 600])
def test_too_much_text_is_shown_for_no_longer_than_its_time_and_a_little(text: str) -> None:
    found = cues([Window(0, 1, text)], speech=[Window(0, 1, text)], style="sentence")
    assert lint(found) == []
    assert found[-1].end_s < 25
