"""The bytes of archives follow from what they hold."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from boards.architectures import BoardError
from boards.archives import EPOCH, deb, md5sums, tar_xz

CONTROL = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"


def tree(folder: Path, names: list[str]) -> Path:
    """A program, a file, a link and a file in a folder, written in the order of the names."""
    folder.mkdir()
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "link":
            path.symlink_to("b")
        else:
            path.write_text(name)
    (folder / "a").chmod(0o700)
    return folder


NAMES = ["a", "b", "link", "usr/share/c"]


@pytest.fixture
def twins(tmp_path: Path) -> tuple[Path, Path]:
    """The same content, written in another order, at another time, under another umask."""
    first = tree(tmp_path / "first", NAMES)
    old = os.umask(0o077)
    second = tree(tmp_path / "second", NAMES[::-1])
    os.umask(old)
    for path in second.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    return first, second


def test_same_content_same_bytes(twins: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = twins
    fields = tree(tmp_path / "fields", ["a", "b"])
    assert tar_xz(first, "x-1") == tar_xz(second, "x-1")
    assert deb(first, fields) == deb(second, fields)
    assert md5sums(first) == md5sums(second)


def test_members_are_sorted_and_of_root(twins: tuple[Path, Path]) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar_xz(twins[1], "x-1"))) as archive:
        members = archive.getmembers()
    inside = ("a", "b", "link", "usr", "usr/share", "usr/share/c")
    assert [one.name for one in members] == ["x-1", *(f"x-1/{name}" for name in inside)]
    assert {(one.uid, one.gid, one.uname, one.mtime) for one in members} == {(0, 0, "root", EPOCH)}
    assert [oct(one.mode) for one in members[1:4]] == ["0o755", "0o644", "0o777"]


def test_time_of_files_is_the_environments(twins: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000")
    with tarfile.open(fileobj=io.BytesIO(tar_xz(twins[0], "x"))) as archive:
        assert {one.mtime for one in archive} == {1000}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "today")
    with pytest.raises(BoardError, match=r"SOURCE_DATE_EPOCH is 'today'.*seconds"):
        tar_xz(twins[0], "x")


def test_sums_are_those_of_the_files(twins: tuple[Path, Path]) -> None:
    lines = {name: digest for digest, name in (line.split("  ") for line in md5sums(twins[0]).splitlines())}
    assert lines == {name: hashlib.md5(name.encode()).hexdigest() for name in NAMES if name != "link"}


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="there is no dpkg-deb")
def test_dpkg_reads_the_package(twins: tuple[Path, Path], tmp_path: Path) -> None:
    fields = tmp_path / "fields"
    fields.mkdir()
    (fields / "control").write_text(CONTROL)
    package = tmp_path / "x.deb"
    package.write_bytes(deb(twins[0], fields))
    shown = subprocess.run(["dpkg-deb", "--field", package], capture_output=True, text=True, check=True).stdout
    assert shown == CONTROL
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path / "root"], check=True)
    assert tar_xz(tmp_path / "root", "x") == tar_xz(twins[0], "x")
