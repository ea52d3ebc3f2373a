"""Which bundle is meant: `caption a.wav` and `caption BUNDLE a.wav`, names, and what is the default."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dasheng_edge.runtime.bundle.bundle import ENCODER
from dasheng_edge.runtime.bundle.manifest import MANIFEST
from dasheng_edge.runtime.config import default_bundle as module
from dasheng_edge.runtime.config.default_bundle import (
    bundle_path,
    check_bundle,
    default_bundle,
    names_bundle,
    stored_bundles,
)
from dasheng_edge.runtime.config.settings import Setting, settings
from dasheng_edge.runtime.errors import BundleNotFoundError


def bundle(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / MANIFEST).touch()
    (path / ENCODER).touch()
    return path


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of bundles, and an empty working folder beside it."""
    monkeypatch.setattr(module, "bundles_folder", lambda: tmp_path / "bundles")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "bundles"


def test_a_stored_bundle_is_a_folder_with_a_manifest(stored: Path) -> None:
    assert stored_bundles() == {}
    bundle(stored / "b")
    bundle(stored / "a")
    bundle(stored / "a.partial" / "deeper")
    (stored / "file").touch()
    (stored / "empty").mkdir()
    assert stored_bundles() == {"a": stored / "a", "b": stored / "b"}


def test_a_name_is_a_stored_bundle_where_nothing_else_has_it(stored: Path) -> None:
    bundle(stored / "micro")
    assert bundle_path("micro") == stored / "micro"
    assert bundle_path("./micro") == Path("micro")
    assert bundle_path("other") == Path("other")
    Path("micro").mkdir()
    assert bundle_path("micro") == Path("micro")


@pytest.mark.parametrize(
    ("words", "is_bundle"),
    [
        (["here-bundle"], True),
        (["here-bundle", "a.wav"], True),
        (["here-bundle/", "a.wav"], True),
        (["stored", "a.wav"], True),
        (["stored"], True),
        (["a.wav"], False),
        (["a.wav", "b.wav"], False),
        (["clips"], False),  # a folder of audio
        (["dataset", "a.wav"], False),  # with a manifest of its own
        (["clips", "a.wav"], False),
        (["clash", "a.wav"], False),  # a file with a stored bundle's name
        (["-"], False),
        (["-", "a.wav"], False),
        # Nothing of that name exists.
        (["gone.wav"], False),
        (["gone.wav", "a.wav"], False),
        (["gone.flac", "gone.mp3"], False),
        (["*.wav", "a.wav"], False),
        (["clips/*", "a.wav"], False),
        (["gone"], False),
        (["gone", "a.wav"], True),
        (["midashenglm-0.6b-fp32", "a.wav"], True),
        (["midashenglm-0.6b", "a.wav"], True),
        (["mispeech/midashenglm-7b", "a.wav"], True),
        (["https://a.test/bundle", "a.wav"], True),
        (["https://a.test/a.wav"], True),
    ],
)
def test_whether_the_first_word_is_a_bundle(stored: Path, words: list[str], is_bundle: bool) -> None:
    bundle(stored / "stored")
    bundle(stored / "clash")
    bundle(Path("here-bundle"))
    Path("clips").mkdir()
    Path("dataset").mkdir()
    Path("dataset", MANIFEST).touch()
    for name in ("a.wav", "clash"):
        Path(name).touch()
    assert names_bundle(words) is is_bundle


def test_the_only_stored_bundle_is_the_default(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHENG_EDGE_CONFIG", "config.toml")
    with pytest.raises(BundleNotFoundError) as error:
        default_bundle({})
    for said in ("$DASHENG_EDGE_BUNDLE", "config", str(stored), "dasheng-edge pull", "dasheng-edge export"):
        assert said in str(error.value)
    bundle(stored / "one")
    default = default_bundle({})
    assert (default.path, str(stored) in default.origin) == (stored / "one", True)
    for number in range(20):
        bundle(stored / f"other{number:02}")
    with pytest.raises(BundleNotFoundError) as error:
        default_bundle({})
    assert "one, other00" in str(error.value)
    assert "and 13 more" in str(error.value)
    assert "dasheng-edge config set bundle one" in str(error.value)


def test_a_setting_beats_the_stored_bundle(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle(stored / "one")
    bundle(stored / "two")
    for path in (Path("own"), stored / "own", tmp_path / "x", tmp_path / "y"):
        bundle(path)
    for value, path in (("two", stored / "two"), (str(tmp_path / "x"), tmp_path / "x"), ("~/y", tmp_path / "y")):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        assert default_bundle({"bundle": Setting(value, "file, line 1")}).path == path
        assert default_bundle(settings({"DASHENG_EDGE_BUNDLE": value})).path == path
    # A variable is typed somewhere, a file is not.
    assert default_bundle(settings({"DASHENG_EDGE_BUNDLE": "own"})).path == Path("own")
    assert default_bundle({"bundle": Setting("own", "file, line 1")}).path == stored / "own"
    with pytest.raises(BundleNotFoundError, match=r"^file, line 1: there is no bundle .*gone"):
        default_bundle({"bundle": Setting("gone", "file, line 1")})
    with pytest.raises(BundleNotFoundError, match=r"^\$DASHENG_EDGE_BUNDLE: there is no bundle \0"):
        default_bundle({"bundle": Setting("\0", "$DASHENG_EDGE_BUNDLE")})


def test_what_is_written_down_holds_from_everywhere(stored: Path) -> None:
    bundle(stored / "one")
    bundle(Path("own"))
    assert check_bundle("one") == "one"
    assert check_bundle("own") == os.path.join(os.getcwd(), "own")  # noqa: PTH109, PTH118
    for text in ("gone", "", "."):
        with pytest.raises(BundleNotFoundError, match="expected one of one"):
            check_bundle(text)


@pytest.mark.parametrize("name", ["\0", "x" * 5000, ""])
def test_impossible_names_are_no_bundles(stored: Path, name: str) -> None:
    assert bundle_path(name) == Path(name)
    assert names_bundle([name]) is False
    with pytest.raises(BundleNotFoundError):
        check_bundle(name)
