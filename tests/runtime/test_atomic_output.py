"""What has its name is whole: a file or folder of ours, in place of an older one."""

from __future__ import annotations

from pathlib import Path

import pytest

from dasheng_edge.runtime.atomic_output import not_a_file, replace_text, replacing


@pytest.mark.parametrize("older", [True, False])
def test_a_text_is_replaced_as_a_whole(tmp_path: Path, older: bool) -> None:
    path = tmp_path / "of" / "mine.txt"
    if older:
        replace_text(path, "an older text, which is longer")
    replace_text(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with replacing(tmp_path / "folder") as part:
            part.mkdir()
            (part / name).touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    replace_text(tmp_path / "x", "before")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "x") as part:
        (part / "in a folder that is not there").touch()
    with pytest.raises(OSError, match="full"), replacing(tmp_path / "x") as part, part.open("w") as file:
        raise OSError(f"{file.write('half')} bytes and the disk is full")
    assert (tmp_path / "x").read_text() == "before"
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert not not_a_file(tmp_path / "x")
    assert not_a_file(tmp_path) == "it is a folder"
    assert not_a_file(Path("/dev/null")) == "it is not a regular file"
