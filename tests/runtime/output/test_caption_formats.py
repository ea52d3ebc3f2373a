"""Formats of captions: one line for each, whatever is in the text, and every field in JSON."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from dasheng_edge.runtime.audio.read import ReadAudio
from dasheng_edge.runtime.audio.windows import Span
from dasheng_edge.runtime.caption import Caption, Timings
from dasheng_edge.runtime.output.caption_formats import (
    CAPTION_FORMATS,
    CsvFormat,
    JsonFormat,
    JsonLinesFormat,
    SrtFormat,
    TextFormat,
    clock,
    format_names,
)
from dasheng_edge.runtime.output.rows import CaptionRow

TIMINGS = Timings(1.23456, 2, 3, 4, 5, 15, 14, 100, 115, 4)
CAPTION = Caption("a bell\nrings", (1, 2), "stop", 12.5, 20, 62, TIMINGS, ("loud",))
WHOLE = CaptionRow.of("a.wav", None, CAPTION)
WINDOW = CaptionRow.of(
    "a.wav", Span(30.0, 42.5, ReadAudio(np.zeros(1, np.float32), 0.0, "a.wav"), whole=False), CAPTION
)
OTHER = WINDOW.model_copy(update={"text": "a siren wails"})
ERROR = CaptionRow.of_error("a.wav", ValueError("line one\nline two"))


def test_text_of_one_file_is_as_the_model_wrote_it() -> None:
    assert TextFormat(single_file=True).line(WHOLE) == "a bell\nrings"


def test_text_of_several_files_and_of_windows_is_one_line_each() -> None:
    assert TextFormat(single_file=False).line(WHOLE) == "a.wav: a bell rings"
    assert TextFormat(single_file=True).line(WINDOW) == "[0:30-0:42.5] a bell rings"
    assert TextFormat(single_file=False).line(WINDOW) == "a.wav: [0:30-0:42.5] a bell rings"


def test_json_has_every_field_on_one_line() -> None:
    line = JsonFormat().line(WINDOW)
    shown = json.loads(line)
    assert "\n" not in line
    assert shown["text"] == CAPTION.text
    assert (shown["start_s"], shown["end_s"]) == (30.0, 42.5)
    assert shown["timings"]["audio_decode_ms"] == 1.235
    assert shown["tokens_per_s"] == 40.0
    rare = {"reason", "changes", "answers"}  # keys that are there where there is something to say
    assert set(shown) - rare == {"audio", "start_s", "end_s", "tokens_per_s", *Caption.__dataclass_fields__} - rare


@pytest.mark.parametrize("name", CAPTION_FORMATS)
@pytest.mark.parametrize("rows", [[], [WHOLE], [WHOLE, OTHER], [ERROR], [WHOLE, ERROR, OTHER]])
def test_each_format_writes_captions_and_errors(name: str, rows: list[CaptionRow]) -> None:
    kind = CAPTION_FORMATS[name]
    text = "".join(kind(single_file=False).document(iter(rows)))
    assert text.count("bell") == rows.count(WHOLE)
    assert text.count("siren") == rows.count(OTHER)
    assert text.count("line two") == (rows.count(ERROR) if kind.errors else 0)
    assert not text or text.endswith("\n")


def test_files_of_json_and_of_tables_read_back() -> None:
    rows = [WHOLE, ERROR, WINDOW]
    assert [CaptionRow(**row) for row in json.loads("".join(JsonFormat().document(rows)))] == rows
    lines = "".join(JsonLinesFormat().document(rows)).splitlines()
    assert [CaptionRow(**json.loads(line)) for line in lines] == rows
    table = list(csv.DictReader(io.StringIO("".join(CsvFormat().document(rows)))))
    assert [row["text"] for row in table] == [CAPTION.text, "", CAPTION.text]
    assert [row["start_s"] for row in table] == ["", "", "30.0"]
    assert table[1]["error"] == "line one\nline two"


def test_several_answers_have_a_line_each() -> None:
    row = CaptionRow.of_answers("a.wav", None, {"caption": CAPTION, "speech": replace(CAPTION, text="come in")})
    assert TextFormat(single_file=True).line(row) == "caption: a bell rings\nspeech: come in"
    assert TextFormat(single_file=False).line(row) == "a.wav: caption: a bell rings\na.wav: speech: come in"
    table = csv.DictReader(io.StringIO("".join(CsvFormat().document([row]))))
    assert [(line["question"], line["text"]) for line in table] == [("caption", CAPTION.text), ("speech", "come in")]
    (shown,) = CAPTION_FORMATS["srt"]().document([row])
    assert "[rings]\n" in shown
    assert "\ncome in\n" in shown


def test_only_ttml_says_its_language_and_is_written_again_for_another() -> None:
    for name, kind in CAPTION_FORMATS.items():
        here, there = kind(), kind(language="pt-BR")
        texts = ["".join(one.document([WHOLE])) for one in (here, there)]
        assert (texts[0] != texts[1]) == (here.look != there.look) == (name == "ttml")
        assert ('xml:lang="en"' in texts[0], 'xml:lang="pt-BR"' in texts[1]) == (name == "ttml",) * 2


def test_names_of_formats() -> None:
    assert format_names("TEXT, json,txt") == ["txt", "json"]
    for wrong in ("", ",", "txt,doc"):
        with pytest.raises(ValueError, match=r"expected one of|did you mean"):
            format_names(wrong)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61, "1:01"), (59.5, "0:59.5"), (3600, "1:00:00"), (3661.5, "1:01:01.5")]
)
def test_times(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_subtitles_begin_at_the_changes_of_their_windows() -> None:
    change = {"time_s": 2.5, "strength": 1.0}
    row = CaptionRow(audio="a.wav", start_s=100.0, end_s=110.0, text="a dog barks", changes=(change,))
    assert "00:01:42,500 -->" in "".join(SrtFormat().document([row]))
