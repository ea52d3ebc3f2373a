"""What has its name is whole: a file or folder of ours, in place of an older one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dasheng_edge.runtime.atomic_output import (
    PartialOutput,
    not_a_file,
    recover,
    remove_left,
    replace_text,
    replacing,
    unfinished,
)

KILLED_EVERYWHERE = """
import os, sys
from pathlib import Path
from dasheng_edge.runtime import atomic_output
from dasheng_edge.runtime.atomic_output import PartialOutput, recover, replacing

asked, folder, exchanged = (word == "1" for word in sys.argv[2:])
out = Path(sys.argv[1]) / "name"
if not exchanged:
    atomic_output._exchange = lambda *_: False

def fill(path, text):
    if folder and not path.is_dir():
        path.mkdir()
    for part in [path / name for name in "abc"] if folder else [path]:
        part.write_text(text)

def write(text):
    if asked:
        output = PartialOutput(out, overwrite=True, what="it", why_not=lambda _: "")
        output.open(folder=folder)
        fill(output.path, text)
        output.move()
    else:
        with replacing(out) as part:
            fill(part, text)

def content():
    return {path.read_text() for path in (out.iterdir() if folder else [out])}

def killed_at(step):
    steps = [step]
    def hook(event, _):
        steps[0] -= event.startswith(("os.", "shutil.", "open", "ctypes."))
        if steps[0] < 0:
            os.kill(os.getpid(), 9)
    sys.addaudithook(hook)
    write("new")
    os._exit(0)

write("old")
for step in range(500):
    pid = os.fork()
    if not pid:
        killed_at(step)
    if not os.waitpid(pid, 0)[1]:
        break
    assert recover(out), step
    assert content() in ({"old"}, {"new"}), (step, content())
    write("old")
    assert content() == {"old"}
    assert os.listdir(out.parent) == ["name"], (step, os.listdir(out.parent))
print(step)
"""

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")


@posix
@pytest.mark.parametrize(("asked", "folder", "exchanged"), [(1, 1, 1), (1, 1, 0), (1, 0, 0), (0, 1, 0), (0, 0, 0)])
def test_a_writer_may_be_killed_at_any_step(tmp_path: Path, asked: int, folder: int, exchanged: int) -> None:
    """The older or the newer one is there, whole; the next writer leaves nothing else."""
    words = [str(tmp_path), *map(str, (asked, folder, exchanged))]
    ran = subprocess.run([sys.executable, "-c", KILLED_EVERYWHERE, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 5


def test_the_names_of_unfinished_outputs_are_known(tmp_path: Path) -> None:
    output = PartialOutput(tmp_path / "a.b", overwrite=False, what="it", why_not=not_a_file)
    output.open(folder=True)
    assert unfinished(output.path) == unfinished(output.path.with_name(output.path.name + ".old")) == "a.b"
    output.discard()
    with replacing(tmp_path / ".x") as part:
        assert unfinished(part) == ".x"
        part.touch()
    assert not any(
        unfinished(Path(name)) for name in ("x", ".x", ".x.partial", ".x.partial-0123", "x.partial-01234567")
    )


@posix
def test_what_is_put_back_is_no_folder_of_a_writer_that_lives(tmp_path: Path) -> None:
    output = PartialOutput(tmp_path / "x", overwrite=False, what="it", why_not=not_a_file)
    output.open(folder=True)
    output.path.with_name(output.path.name + ".old").mkdir()  # as between the two renames
    assert not recover(tmp_path / "x")
    output.discard()
    assert recover(tmp_path / "x")
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


@posix
def test_only_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    dead, other, old = (
        tmp_path / f".{name}.partial-{8 * digit}" for name, digit in (("x.kv", "0"), ("x", "1"), ("y.kv", "2"))
    )
    for path in (dead, other, old, tmp_path / "x.kv"):
        path.touch()
    os.utime(old, (0, 0))
    with replacing(tmp_path / "z.kv") as alive:
        alive.touch()
        remove_left(tmp_path, "*.kv")
        assert alive.exists()
        assert dead.exists()  # nobody knows whose it is
        assert not old.exists()
    remove_left(tmp_path, "*.kv")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "x.kv", "z.kv"]
    remove_left(tmp_path / "none", "*")


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
