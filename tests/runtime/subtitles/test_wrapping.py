"""Lines: nothing is lost, nothing is torn, and breaks are where a reader wants them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.runtime.subtitles.wrapping import blocks, columns, graphemes, limits, reading_ms, shown


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "A dog barks while an engine runs in the background.",
            ("A dog barks while an engine", "runs in the background."),
        ),
        ("I am well, and I was thinking that we should go.", ("I am well,", "and I was thinking that we should go.")),
        ("short", ("short",)),
        ("一只狗在叫，同时发动机在远处运转着。", ("一只狗在叫，", "同时发动机在远处运转着。")),
        ("👩‍👩‍👧‍👦" * 22, ("👩‍👩‍👧‍👦" * 21, "👩‍👩‍👧‍👦")),
    ],
)
def test_breaks(text: str, lines: tuple[str, ...]) -> None:
    assert blocks(text) == [lines]


@given(st.text(max_size=300))
def test_lines_fit_and_hold_all_of_the_text(text: str) -> None:
    found = blocks(shown(text))
    assert all(1 <= len(lines) <= 2 and reading_ms(lines) <= 7000 for lines in found)
    assert all(columns(line) <= limits(line).columns and line == shown(line) for lines in found for line in lines)
    assert "".join("".join(lines) for lines in found).replace(" ", "") == shown(text).replace(" ", "")


@given(st.text(max_size=60))
def test_characters_are_those_of_unicode_or_longer(text: str) -> None:
    regex = pytest.importorskip("regex")
    text = shown(text)
    ends = {match.end() for match in regex.finditer(r"\X", text)}
    at = 0
    for part in graphemes(text):
        at += len(part)
        assert at in ends or regex.match(r"\p{GCB=Prepend}|\p{Cn}", part[-1]) or regex.match(r"\p{Cn}", text[at])
    assert at == len(text)


@pytest.mark.parametrize(
    ("character", "width"),
    [("a", 1), ("é", 1), ("e\u0301", 1), ("狗", 2), ("👍🏽", 2), ("🇩🇪", 2), ("❤️", 2), ("각", 2), ("ﾊ", 1)],
)
def test_columns(character: str, width: int) -> None:
    assert (graphemes(character), columns(character)) == ([character], width)
