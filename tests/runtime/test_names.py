"""What people type instead of a file or a known word."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.runtime.audio.read import read_audio
from dasheng_edge.runtime.errors import AudioNotFoundError
from dasheng_edge.runtime.names import address_hint, bundle_hint, did_you_mean, known_name, printable, printable_json

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
