"""Corpora: every token of a text is counted, wherever blocks end; and files that are no text are refused."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dasheng_edge.quant.vocabulary import corpus
from dasheng_edge.quant.vocabulary.corpus import (
    Counts,
    VocabularyOptions,
    corpus_bytes,
    count_tokens,
    parse_vocabulary,
)
from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.errors import QuantizeError
from dasheng_edge.runtime.progress import no_advance
from dasheng_edge.runtime.text.model import TextModel
from tests.fixtures.places import SMALLEST_BUNDLE
from tests.fixtures.vocabulary_decoder import vocabulary_of

LINES = st.lists(
    st.tuples(
        st.text(st.sampled_from("the sound of a bell, 3 雨é!'\t"), max_size=12),
        st.sampled_from(["\n", "\r\n", "\n\n", " \n", "\n  ", " "]),
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def model() -> TextModel:
    return vocabulary_of(SMALLEST_BUNDLE / DECODER)


def count(model: TextModel, *paths: Path) -> Counts:
    return count_tokens(paths, model.tokenize, model.n_vocab, no_advance)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, block=st.integers(100, 300))
def test_every_token_of_the_text_is_counted(
    lines: list[tuple[str, str]], block: int, model: TextModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a" + "".join(text + end for text, end in lines)
    monkeypatch.setattr(corpus, "BLOCK_BYTES", block)
    monkeypatch.setattr(corpus, "_ENDS", re.compile("(?!)"))
    (tmp_path / "corpus.txt").write_bytes(text.encode())
    got = count(model, tmp_path / "corpus.txt")
    assert got.all.tolist() == np.bincount(model.tokenize(text), minlength=model.n_vocab).tolist()


def test_an_end_of_a_line_is_the_end_of_an_answer(model: TextModel, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a bell!\nthe bell")
    (stop,) = model.tokenize("!")
    assert count(model, tmp_path / "a.txt").used[stop] > 0


def test_a_tenth_of_the_lines_is_held_out(model: TextModel, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{'#' if line % 10 == 9 else 'a'}\n" for line in range(25)))
    (tmp_path / "b.txt").write_text("".join(f"{'#' if line % 10 == 4 else 'a'}\n" for line in range(25)))
    got = count(model, tmp_path / "a.txt", tmp_path / "b.txt")
    (mark,), (other,) = model.tokenize("#"), model.tokenize("a")
    assert (got.used[mark], got.held_out[mark], got.held_out[other]) == (0, 5, 0)
    assert got.sha256["b.txt"] == hashlib.sha256((tmp_path / "b.txt").read_bytes()).hexdigest()


def test_memory_does_not_grow_with_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 1000)
    lengths: list[int] = []

    def tokenize(text: str) -> list[int]:
        lengths.append(len(text))
        return []

    for text in (
        "word " * 20_000,
        "x" * 100_000,
        "a\n" + "x" * 99_000,
        "line\n" * 20_000,
        "x" + "\n" * 100_000,
        " " * 100_000 + "x",
    ):
        (tmp_path / "a.txt").write_text(text)
        count_tokens([tmp_path / "a.txt"], tokenize, 1, no_advance)
    assert max(lengths) <= 3000


def test_what_is_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: TextModel) -> None:
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 10)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa bell and a dog")
    told: list[int] = []
    count_tokens([tmp_path / "a.txt"], model.tokenize, model.n_vocab, told.append)
    assert told == [10, 9]
    assert corpus_bytes([tmp_path / "a.txt"] * 2) == 38


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "there is no text in it"),
        (b" \n\t \n", "there is no text in it"),
        (b"a bell\0rings", "holds zero bytes"),
        ("Glocke für".encode("latin-1"), "is no text in UTF-8: invalid start byte near byte 8"),
        ("a bell".encode("utf-16"), "is no text in UTF-8"),
        (b"a bell \xe9\x9b", "is no text in UTF-8: unexpected end of data"),
    ],
)
def test_files_that_are_no_text(content: bytes, said: str, tmp_path: Path, model: TextModel) -> None:
    (tmp_path / "corpus.txt").write_bytes(content)
    with pytest.raises(QuantizeError, match=rf"--vocab \S*corpus\.txt:? {said}"):
        count(model, tmp_path / "corpus.txt")


def test_files_that_are_not_there(tmp_path: Path, model: TextModel) -> None:
    with pytest.raises(
        QuantizeError, match=r"nothing\.txt cannot be read: No such file.*give a text file, or a number"
    ):
        corpus_bytes([tmp_path / "nothing.txt"])
    with pytest.raises(QuantizeError, match="is a folder; name its text files"):
        corpus_bytes([tmp_path])
    with pytest.raises(QuantizeError, match=r"cannot be read: .*null"):
        corpus_bytes([Path("a\0b")])
    with pytest.raises(QuantizeError, match="cannot be read: File name too long"):
        corpus_bytes([Path("9" * 300)])
    with pytest.raises(QuantizeError, match="cannot be read"):
        count(model, tmp_path / "nothing.txt")


def test_numbers_and_files() -> None:
    assert parse_vocabulary(()) is None
    assert parse_vocabulary(("32768",)) == VocabularyOptions((), 32768)
    assert parse_vocabulary(("a.txt", "./7", "7")) == VocabularyOptions((Path("a.txt"), Path("7")), 7)
    with pytest.raises(QuantizeError, match="has the numbers 7 and 8; give one"):
        parse_vocabulary(("7", "a", "8"))
