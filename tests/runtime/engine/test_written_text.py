"""Text as it comes: all of it, up to the first text that stops it, and never a piece too early."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.runtime.engine.written_text import WrittenText


class Bytes:
    """Tokens are places in a list of pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def piece(self, token: int) -> bytes:
        return self.pieces[token]


def split(text: str, cuts: list[int]) -> list[bytes]:
    data = text.encode()
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


TEXTS = st.text("abcé", max_size=12)


@given(TEXTS, st.lists(st.integers(0, 40), max_size=8), st.lists(st.text("abcé", min_size=1, max_size=3), max_size=3))
def test_pieces_make_the_text_up_to_what_stops_it(text: str, cuts: list[int], stop: list[str]) -> None:
    pieces = split(text, cuts)
    written = WrittenText(Bytes(pieces), stop)
    given_text = ""
    for token in range(len(pieces)):
        given_text += written.add(token)
        assert not any(word in given_text for word in stop)
        if written.stopped:
            assert not any(written.add(token) for token in range(token, len(pieces)))
            break
        assert written.complete <= token + 1
    given_text += written.finish()
    assert given_text == written.text
    assert text.startswith(given_text)
    assert written.stopped == any(word in text for word in stop)
    if written.stopped:
        assert any(text[len(given_text) :].startswith(word) for word in stop)
    else:
        assert given_text == text
        assert written.complete == len(pieces)


def test_bytes_that_are_no_character() -> None:
    written = WrittenText(Bytes([b"a\xf0\x9f", b"\x98"]))
    assert written.add(0) + written.add(1) == "a"
    assert written.finish() == "\ufffd"
    assert WrittenText(Bytes([])).finish() == ""
