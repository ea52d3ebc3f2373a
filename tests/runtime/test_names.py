"""What people type instead of a file or a known word."""

from __future__ import annotations

import io
import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.runtime.audio.read import read_audio
from dasheng_edge.runtime.errors import AudioNotFoundError
from dasheng_edge.runtime.names import (
    address_hint,
    bundle_hint,
    cells,
    columns,
    did_you_mean,
    fitted,
    known_name,
    moves,
    printable,
    printable_json,
    shortened,
)

TYPES = ("F16", "Q8_0", "Q4_K_M", "Q4_K_S", "Q5_K_M", "Q4_0", "Q6_K", "Q2_K", "IQ4_XS")


@pytest.mark.parametrize("name", ["https://a.test/x.wav", "s3://a/x.wav", Path("https://a.test/x.wav")])
def test_an_address_is_told_from_a_path(name: str | Path) -> None:
    assert address_hint(name).startswith(("https://a.test/x.wav is an address", "s3://a/x.wav is an address"))


@pytest.mark.parametrize("name", ["x.wav", "a/b", "C:/x.wav", "C:\\x.wav", "/https:/x", "talk: one.wav", ""])
def test_paths_get_no_hint(name: str) -> None:
    assert address_hint(name) == ""


def test_a_model_of_the_hub_needs_two_commands() -> None:
    hint = bundle_hint("owner/model-7b")
    assert "`dasheng-edge pull owner/model-7b`" in hint
    assert "`dasheng-edge export model-7b --out BUNDLE`" in hint
    assert [bundle_hint(path) for path in ("/a/b", "./b", "a/b/c", "b", "../b")] == [""] * 5


def test_audio_at_an_address_is_not_fetched() -> None:
    with pytest.raises(AudioNotFoundError, match=r"^https://a\.test/x\.wav is an address, and nothing is fetched"):
        next(read_audio("https://a.test/x.wav"))


def test_names_in_any_case() -> None:
    assert known_name("q4_k_m", TYPES) == "Q4_K_M"
    assert known_name("q4", TYPES) is None


def test_near_names_are_offered() -> None:
    assert did_you_mean("q4km", TYPES).startswith("did you mean Q4_K_M")
    assert did_you_mean("surprise", TYPES) == f"expected one of {', '.join(TYPES)}"
    assert did_you_mean("cud", ("cpu", "cuda")) == "did you mean cuda? expected one of cpu, cuda"


BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # bidirectional classes of those that steer


@given(st.text(st.characters(exclude_categories=())))
def test_what_is_shown_steers_no_terminal_and_can_be_written(text: str) -> None:
    for shown in (printable(text), printable_json(json.dumps(text, ensure_ascii=False))):
        shown.encode()
        assert not any(unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") for character in shown)
        assert not BIDI & set(map(unicodedata.bidirectional, shown))
    assert json.loads(printable_json(json.dumps(text, ensure_ascii=False))) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07\x9b2J", r"\x1b]0;title\x07\x9b2J"),
        ("a\nerror: b\r\tc", r"a\nerror: b\r\tc"),
        ("exe\u202egpj.wav", r"exe\u202egpj.wav"),
        (os.fsdecode(b"\xe9\xff.wav"), r"\xe9\xff.wav"),
        ("Gerät, 犬, שלום, 👩\u200d🚒", "Gerät, 犬, שלום, 👩\u200d🚒"),  # writing of all kinds stays
    ],
)
def test_how_it_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text, keep=text) == text


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_line_is_broken_between_words_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    line = f"opening x86-64-v3 files of {'f' * 64} again"
    assert fitted(line, io.StringIO()) == line
    assert fitted(line, Terminal()) == f"opening x86-64-v3\nfiles of\n{'f' * 64}\nagain"
    assert fitted("short", Terminal()) == "short"


@given(st.text("ab \n音楽é\u0301", max_size=60), st.integers(1, 30))
def test_a_line_that_is_broken_keeps_its_words_and_fits(line: str, width: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("COLUMNS", str(width))
        broken = fitted(line, Terminal())
    assert broken.split() == line.split()
    if broken != line:
        assert all(cells(part) <= width or " " not in part for part in broken.split("\n"))


@pytest.mark.skipif(os.name == "nt", reason="there are no pseudo-terminals")
def test_each_stream_has_the_width_of_its_own_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import fcntl
    import pty
    import struct
    import termios

    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    ends = pty.openpty()
    fcntl.ioctl(ends[0], termios.TIOCSWINSZ, struct.pack("HHHH", 30, 43, 0, 0))
    with open(ends[1], "w") as stream, (tmp_path / "piped").open("w") as piped:  # noqa: PTH123  # a number
        assert (columns(stream), moves(stream)) == (43, True)
        assert (columns(piped), moves(piped), columns(io.StringIO())) == (80, False, 80)
        monkeypatch.setenv("TERM", "dumb")
        assert not moves(stream)
        monkeypatch.setenv("COLUMNS", "70")
        assert columns(stream) == columns(piped) == 70
    os.close(ends[0])


@given(st.text(st.sampled_from("ab 中,"), max_size=30), st.integers(1, 40))
def test_what_is_shortened_fits_and_ends_behind_a_word(text: str, width: int) -> None:
    shown = shortened(text, width)
    assert cells(shown) <= width
    assert shown == text or (shown.endswith("…") and text.startswith(shown[:-1].rstrip()))
    assert shortened("an alarm beeps", 12) == "an alarm…"
