"""Keys: where they are read from, and what is no key."""

from __future__ import annotations

from pathlib import Path

import pytest

from dasheng_edge.runtime.errors import ConfigError
from dasheng_edge.runtime.server.keys import KEY_VARIABLE, Keys, is_loopback

KEY = "0123456789abcdef"


def test_keys_are_read_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# mine\n{KEY}\n\n {KEY}2 \n", "utf-8")
    for keys in (Keys.read(str(file), {}), Keys.read("env", {KEY_VARIABLE: f"{KEY}\n{KEY}2"})):
        assert (keys.owner(KEY), keys.owner(KEY + "2"), keys.owner(KEY + "3"), keys.owner(None)) == (
            "key1", "key2", None, None
        )  # fmt: skip
        assert KEY not in repr(keys)
    assert Keys.read(None, {}).digests == {}
    assert len(Keys.read(None, {KEY_VARIABLE: KEY}).digests) == 1


@pytest.mark.parametrize("text", ["", "# nothing\n", "short", "with blank in the middle", "schlüssel-schlüssel"])
def test_what_is_no_key_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(text, "utf-8")
    for place, environ in ((str(tmp_path / "keys"), {}), ("env", {KEY_VARIABLE: text})):
        with pytest.raises(ConfigError, match="expected") as error:
            Keys.read(place, environ)
        assert not text.strip() or text not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "huge").write_bytes(bytes(2 << 20))
    for place in ("none", "binary", "huge", "."):
        with pytest.raises(ConfigError, match=place if place != "." else "read keys"):
            Keys.read(str(tmp_path / place), {})


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost", True), ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("[::1]", True), ("0.0.0.0", False),
     ("::", False), ("192.168.1.2", False), ("example.org", False), ("localhost.example", False)],
)  # fmt: skip
def test_which_hosts_are_this_machine_alone(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
