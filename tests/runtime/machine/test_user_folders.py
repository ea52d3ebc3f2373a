"""Where the caches of this user lie."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dasheng_edge.runtime.machine import user_folders
from dasheng_edge.runtime.machine.user_folders import cache_folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have other places")
def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DASHENG_EDGE_CACHE", "off")
    assert cache_folder() is None
    monkeypatch.setenv("DASHENG_EDGE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("DASHENG_EDGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "dasheng-edge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "dasheng-edge"


def test_without_a_home_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASHENG_EDGE_CACHE")
    monkeypatch.setattr(user_folders, "user_cache_path", lambda *_, **__: Path("~/.cache/dasheng-edge"))
    assert cache_folder() is None
