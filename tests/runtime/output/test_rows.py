"""Rows hold what JSON prints, key for key, and read back as they were written."""

from __future__ import annotations

import dataclasses
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


def test_a_row_prints_what_the_caption_is() -> None:
    caption = Caption("a bell", (1,), "stop", 1.0, 2, 3, Timings(1, 2, 3, 4, 5, 6, 7, 8, 9, 10), ("loud",))
    shown = {"audio": "a.wav", **dataclasses.asdict(caption), "tokens_per_s": 1250.0}
    rare = {"reason", "changes"}  # a key only where there is something to say
    shown = {key: value for key, value in shown.items() if key not in rare}
    keys = [*shown.keys() - {"confidence"}, "confidence"]
    line = CaptionRow.of("a.wav", None, caption).json_line()
    assert json.loads(line) == json.loads(json.dumps(shown))
    assert sorted(json.loads(line)) == sorted(keys)
    assert '"decode_tokens": 10' in line
    assert "10.0" not in line  # whole numbers stay whole


def test_answers_of_several_questions_are_one_row() -> None:
    bell, dog = (Caption(text, (1,), "stop", 1.0, 2, 3, TIMINGS, ("loud",)) for text in ("a bell", "woof"))
    failed = AudioEmptyError("no room")
    row = CaptionRow.of_answers("a.wav", None, {"odd": failed, "caption": bell, "said": dog})
    assert (row.text, row.warnings) == ("a bell", ("loud",))
    assert row.answers is not None
    assert row.answers["odd"] == {"error": "no room", "error_type": "AudioEmptyError"}
    assert [name for name, _ in row.texts()] == ["odd", "caption", "said"]
    assert CaptionRow.model_validate(json.loads(row.json_line())).json_line() == row.json_line()
    assert CaptionRow.of_answers("a.wav", None, {"odd": failed}).error == "no room"


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="surprise"):
        CaptionRow.model_validate({"audio": "a.wav", "surprise": 1})
