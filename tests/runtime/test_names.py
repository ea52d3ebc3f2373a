"""What people type instead of a file or a known word."""

from __future__ import annotations

from pathlib import Path

import pytest

from dasheng_edge.runtime.audio.read import read_audio
from dasheng_edge.runtime.errors import AudioNotFoundError
from dasheng_edge.runtime.names import address_hint, bundle_hint, did_you_mean, known_name

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
    assert did_you_mean("cud", ("cpu", "cuda")) == "expected one of cpu, cuda"
