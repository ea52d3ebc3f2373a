"""Rows hold what JSON prints, key for key, and read back as they were written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.runtime.caption import Caption, Timings
from dasheng_edge.runtime.errors import AudioEmptyError
from dasheng_edge.runtime.output.rows import CaptionRow

TIMINGS = Timings(1.23456, 2, 3, 4, 5, 15, 14, 100, 115, 4)
TEXTS = st.text(st.characters(codec="utf-16", exclude_categories=()))  # what can be in a name, or in an answer


@given(TEXTS, TEXTS, st.lists(st.integers(0, 1 << 18)), st.lists(TEXTS, max_size=2))
def test_a_row_reads_back_as_it_was(name: str, text: str, tokens: list[int], warnings: list[str]) -> None:
    caption = Caption(text, tuple(tokens), "stop", 1.0, 2, 3, TIMINGS, tuple(warnings))
    for row in (CaptionRow.of(f"\udcff{name}", None, caption), CaptionRow.of_error(name, AudioEmptyError(text))):
        line = row.json_line()
        assert line.encode().count(b"\n") == 0
        assert CaptionRow.model_validate(json.loads(line)) == row
        assert CaptionRow.model_validate(json.loads(line)).json_line() == line


def test_a_row_has_the_keys_that_it_was_made_with() -> None:
    assert list(CaptionRow.of_error("a.wav", ValueError("no")).fields()) == ["audio", "error", "error_type"]
    row = CaptionRow.of("a.wav", None, Caption("a bell", (1,), "stop", 1.0, 2, 3, TIMINGS))
    assert "start_s" not in row.fields()
    assert "error" not in row.fields()


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="surprise"):
        CaptionRow.model_validate({"audio": "a.wav", "surprise": 1})
