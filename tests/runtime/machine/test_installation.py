"""The line that installs more of the package names where it came from."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from dasheng_edge.runtime.machine.installation import install_line


def came_from(monkeypatch: pytest.MonkeyPatch, origin: dict[str, Any] | None) -> None:
    class Distribution:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if origin is None else json.dumps(origin)

    monkeypatch.setattr(metadata, "distribution", lambda _: Distribution())
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        (None, "pip install 'dasheng-edge[cpu]'"),
        (
            {"url": "file:///w/dasheng_edge-0.1.0-py3-none-any.whl", "archive_info": {}},
            "pip install 'dasheng-edge[cpu] @ file:///w/dasheng_edge-0.1.0-py3-none-any.whl'",
        ),
        ({"url": "file:///w/source", "dir_info": {}}, "pip install 'dasheng-edge[cpu] @ file:///w/source'"),
        (
            {"url": "https://git.test/d.git", "vcs_info": {"vcs": "git", "commit_id": "1"}},
            "pip install 'dasheng-edge[cpu] @ git+https://git.test/d.git'",
        ),
    ],
)
def test_where_the_package_came_from(monkeypatch: pytest.MonkeyPatch, origin: dict[str, Any] | None, line: str) -> None:
    came_from(monkeypatch, origin)
    assert install_line("cpu") == line


def test_a_checkout_has_constraints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    came_from(monkeypatch, {"url": tmp_path.as_uri(), "dir_info": {"editable": True}})
    assert install_line() == f"pip install -e {tmp_path}"
    pins = tmp_path / "constraints.txt"
    pins.touch()
    assert install_line("quant", "cpu") == f"pip install -c {pins} -e '{tmp_path}[quant,cpu]'"


def test_the_size_of_torch_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    came_from(monkeypatch, None)
    assert "pytorch.org/get-started" in install_line("export", "cpu")
    monkeypatch.setattr(sys, "platform", "darwin")  # where torch has no CUDA
    assert install_line("export", "cpu") == "pip install 'dasheng-edge[export,cpu]'"


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    assert install_line("cpu") == "pip install 'dasheng-edge[cpu]'"
