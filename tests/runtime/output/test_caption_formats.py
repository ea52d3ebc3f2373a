"""Formats of captions: one line for each, whatever is in the text, and every field in JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dasheng_edge.runtime.audio.read import ReadAudio
from dasheng_edge.runtime.audio.windows import Span
from dasheng_edge.runtime.caption import Caption, Timings
from dasheng_edge.runtime.output.caption_formats import CAPTION_FORMATS, JsonFormat, TextFormat, clock

TIMINGS = Timings(1.23456, 2, 3, 4, 5, 15, 14, 100, 115, 4)
CAPTION = Caption("a bell\nrings", (1, 2), "stop", 12.5, 20, 62, TIMINGS, ("loud",))
WINDOW = Span(30.0, 42.5, ReadAudio(np.zeros(1, np.float32), 0.0, "a.wav"), whole=False)


def test_text_of_one_file_is_as_the_model_wrote_it() -> None:
    assert TextFormat(single_file=True).caption("a.wav", None, CAPTION) == "a bell\nrings"


def test_text_of_several_files_and_of_windows_is_one_line_each() -> None:
    assert TextFormat(single_file=False).caption("a.wav", None, CAPTION) == "a.wav: a bell rings"
    assert TextFormat(single_file=True).caption("a.wav", WINDOW, CAPTION) == "[0:30-0:42.5] a bell rings"
    assert TextFormat(single_file=False).caption("a.wav", WINDOW, CAPTION) == "a.wav: [0:30-0:42.5] a bell rings"


def test_json_has_every_field_on_one_line() -> None:
    line = JsonFormat(single_file=True).caption("a.wav", WINDOW, CAPTION)
    shown = json.loads(line)
    assert "\n" not in line
    assert shown["text"] == CAPTION.text
    assert (shown["start_s"], shown["end_s"]) == (30.0, 42.5)
    assert shown["timings"]["audio_decode_ms"] == 1.235
    assert shown["tokens_per_s"] == 40.0
    assert set(shown) == {"audio", "start_s", "end_s", "tokens_per_s", *Caption.__dataclass_fields__}


@pytest.mark.parametrize("name", CAPTION_FORMATS)
def test_each_format_takes_captions_and_errors(name: str) -> None:
    lines = CAPTION_FORMATS[name](single_file=False)
    assert "bell" in lines.caption("a.wav", None, CAPTION)
    assert "\n" not in lines.error("a.wav", ValueError("line one\nline two"))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61, "1:01"), (59.5, "0:59.5"), (3600, "1:00:00"), (3661.5, "1:01:01.5")]
)
def test_times(seconds: float, text: str) -> None:
    assert clock(seconds) == text
