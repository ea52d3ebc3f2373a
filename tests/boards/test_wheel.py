"""The wheel of llama-cpp-python for a board, of stand-ins for what is compiled."""

from __future__ import annotations

import base64
import csv
import hashlib
import zipfile
from pathlib import Path

import pytest

from benchmarks.peers.llama_cpp_tools import pinned_version
from boards import wheel
from boards.architectures import BoardError

NAME, INFO, TAG = (
    "llama_cpp_python-1.0-py3-none-linux_aarch64.whl",
    "llama_cpp_python-1.0.dist-info",
    "py3-none-linux_aarch64",
)


def test_record_lists_every_file_and_bytes_follow_from_the_content(tmp_path: Path) -> None:
    content = {"llama_cpp/__init__.py": b"", "llama_cpp/lib/libllama.so": b"\x7fELF", f"{INFO}/METADATA": b"Name: x\n"}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        wheel.write(
            tmp_path / folder / NAME, dict(reversed(content.items()) if folder == "two" else content), INFO, TAG
        )
    assert (tmp_path / "one" / NAME).read_bytes() == (tmp_path / "two" / NAME).read_bytes()
    with zipfile.ZipFile(tmp_path / "one" / NAME) as archive:
        record = {name: digest for name, digest, _ in csv.reader(archive.read(f"{INFO}/RECORD").decode().splitlines())}
        assert set(record) == set(archive.namelist())
        for name in {*record} - {f"{INFO}/RECORD"}:
            digest = base64.urlsafe_b64encode(hashlib.sha256(archive.read(name)).digest()).rstrip(b"=").decode()
            assert record[name] == f"sha256={digest}"
        assert f"Tag: {TAG}\n".encode() in archive.read(f"{INFO}/WHEEL")


def test_python_files_are_the_installed_ones_without_libraries() -> None:
    files = wheel.python_files(pinned_version())
    assert "llama_cpp/llama_cpp.py" in files
    assert any(name.endswith("dist-info/METADATA") for name in files)
    assert not [name for name in files if name.endswith((".so", ".pyc", "RECORD", "direct_url.json"))]


def test_files_of_another_version_are_not_taken() -> None:
    with pytest.raises(BoardError, match=r"are those of llama-cpp-python 9\.9\.9, installed is 0\."):
        wheel.python_files("9.9.9")
