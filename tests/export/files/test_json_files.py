"""JSON that nobody's tools write: it is read where its meaning is plain, and else refused in one sentence."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.export.files import json_files
from dasheng_edge.export.files.json_files import MAX_NESTING, json_object, read_json
from dasheng_edge.runtime.errors import CheckpointFileError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])  # of editors and of PowerShell
def test_a_byte_order_mark_does_not_matter(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"prompt": "Was hört man? 🐕"}', encoding=encoding)
    assert read_json(path) == {"prompt": "Was hört man? 🐕"}


@given(depth=st.integers(1, 3000), opening=st.sampled_from(["[", '{"a":']))
def test_brackets_may_be_nested_so_deep_and_no_deeper(depth: int, opening: str) -> None:
    closing = {"[": "]"}.get(opening, "}")
    text = '{"x":' + opening * depth + "1" + closing * depth + "}"
    if depth < MAX_NESTING:
        assert json_object(text.encode(), "x.json", "mend it") == json.loads(text)
    else:
        with pytest.raises(CheckpointFileError, match=r"cannot read x\.json: .*; mend it"):
            json_object(text.encode(), "x.json", "mend it")


@given(
    content=st.binary(max_size=40) | st.text(max_size=40).map(lambda text: ('{"a":' + text).encode("utf-8", "replace"))
)
def test_any_bytes_are_an_object_or_refused(content: bytes) -> None:
    with suppress(CheckpointFileError):
        json.dumps(json_object(content, "x.json", "mend it"), ensure_ascii=False).encode()


def test_half_a_character_is_no_text() -> None:
    assert json_object(rb'{"a": "\ud83d\udc15"}', "x.json", "mend it") == {"a": "🐕"}
    with pytest.raises(CheckpointFileError, match="surrogates not allowed"):
        json_object(rb'{"\ud83d": 1}', "x.json", "mend it")


def test_what_is_no_small_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "config.json")  # would be waited for
    with pytest.raises(CheckpointFileError, match="it is no regular file"):
        read_json(tmp_path / "config.json")
    with pytest.raises(CheckpointFileError, match="it is no regular file"):
        read_json(tmp_path)
    monkeypatch.setattr(json_files, "MAX_BYTES", 9)
    (tmp_path / "index.json").write_text('{"a": 123}')
    with pytest.raises(CheckpointFileError, match="it has 10 bytes, expected at most 9"):
        read_json(tmp_path / "index.json")
