"""What a writer leaves behind when it is killed: no bundle, and nothing for long."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dasheng_edge.runtime.bundle.bundle import ENCODER, Bundle
from dasheng_edge.runtime.bundle.manifest import MANIFEST
from dasheng_edge.runtime.bundle.writer import BundleWriter
from dasheng_edge.runtime.errors import BundleNotFoundError, OutputExistsError, OutputWriteError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither these locks nor SIGKILL")

WRITER = """
import sys, time
from dasheng_edge.runtime.bundle.writer import BundleWriter
with BundleWriter(sys.argv[1]) as writer:
    writer.path("encoder.onnx").write_bytes(b"half of it")
    print("written", flush=True)
    time.sleep(60)
"""


def killed_writer(out: Path) -> Path:
    """Folder that a writer left which was killed in the middle."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(out)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    (left,) = out.parent.glob(f".{out.name}.partial-*")
    return left


def test_what_a_killed_writer_left_is_no_bundle_and_goes_with_the_next(tmp_path: Path) -> None:
    left = killed_writer(tmp_path / "toy")
    with pytest.raises(BundleNotFoundError):
        Bundle.open(left)
    other = tmp_path / ".other.partial-x"
    other.mkdir()

    with BundleWriter(tmp_path / "toy") as writer:
        assert not left.exists()
        assert other.exists()
        with pytest.raises(OutputWriteError, match="another process is writing it"), BundleWriter(tmp_path / "toy"):
            pass
        assert writer.path(ENCODER).parent.exists()  # one at work is left alone

    assert list(tmp_path.iterdir()) == [other]


def test_where_there_are_no_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def no_locks(*_: object) -> None:
        raise OSError

    left = killed_writer(tmp_path / "toy")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with BundleWriter(tmp_path / "toy"):
        assert left.exists()


def test_a_lock_that_its_holder_removes_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    flock = fcntl.flock
    gone: list[int] = []

    def late(handle: int, how: int) -> None:
        if not gone:  # between `open` and `flock`, another writer ends
            (tmp_path / ".toy.lock").unlink()
            gone.append(handle)
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with BundleWriter(tmp_path / "toy"), pytest.raises(OutputWriteError, match="another process"):
        BundleWriter(tmp_path / "toy").__enter__()
    assert gone
    assert not list(tmp_path.iterdir())


KILLED_BETWEEN = """
import os, sys
from pathlib import Path
from dasheng_edge.runtime import atomic_output
from dasheng_edge.runtime.atomic_output import PartialOutput

atomic_output._exchange = lambda *_: False  # as where two folders cannot change names in one step
rename = Path.rename
def rename_and_die(self, target):
    rename(self, target)
    os.kill(os.getpid(), 9)
Path.rename = rename_and_die
partial = PartialOutput(sys.argv[1], overwrite=True, what="it", why_not=lambda _: "")
partial.open(folder=True)
partial.move()
"""


def test_a_bundle_that_was_about_to_be_replaced_is_put_back(tiny_folder: Path) -> None:
    out = tiny_folder
    assert subprocess.run([sys.executable, "-c", KILLED_BETWEEN, str(out)], check=False).returncode == -signal.SIGKILL
    assert not out.exists()
    assert len(list(out.parent.glob(".toy.partial-*"))) == 2
    with pytest.raises(OutputExistsError, match="already exists"), BundleWriter(out):
        pass
    assert (out / MANIFEST).is_file()
    assert list(out.parent.iterdir()) == [out]


def test_a_bundle_that_was_about_to_be_replaced_is_there_for_who_opens_it(tmp_path: Path, tiny_bundle: Path) -> None:
    out = Path(shutil.copytree(tiny_bundle, tmp_path / "toy"))
    subprocess.run([sys.executable, "-c", KILLED_BETWEEN, str(out)], check=False)
    for left in tmp_path.glob(".toy.partial-*"):
        with pytest.raises(BundleNotFoundError, match=f"left when it was ended; open {out}"):
            Bundle.open(left)
    link = tmp_path / "link"
    link.symlink_to(next(tmp_path.glob(".toy.partial-*.old")))
    with pytest.raises(BundleNotFoundError, match="a writer of toy left"):
        Bundle.open(link)
    assert Bundle.open(out).folder == out


def test_what_was_put_back_may_be_replaced(tiny_folder: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED_BETWEEN, str(tiny_folder)], check=False)
    with pytest.raises(RuntimeError, match="a step failed"), BundleWriter(tiny_folder, overwrite=True):
        raise RuntimeError("a step failed")
    assert (tiny_folder / MANIFEST).is_file()
    assert list(tiny_folder.parent.iterdir()) == [tiny_folder]


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """What counts as a bundle for a writer."""
    out = tmp_path / "toy"
    out.mkdir()
    (out / MANIFEST).write_text('{"schema_version": 2, "files": {}}')
    return out


@pytest.mark.parametrize("error", [PermissionError(1, "Operation not permitted"), KeyboardInterrupt()])
def test_a_writer_that_cannot_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(secrets, "token_hex", fail)  # everything else is there by then
    expected = OutputWriteError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), BundleWriter(tmp_path / "new" / "folder" / "toy"):
        pass
    assert not list(tmp_path.iterdir())


def test_folders_that_others_use_by_then_stay(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "new" / "folder" / "toy"):
        (tmp_path / "new" / "theirs").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["theirs"]


@pytest.mark.parametrize("mask", [0o077, 0o022])
def test_the_umask_is_respected(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with BundleWriter(tmp_path / "toy") as writer:
            mode = writer.path(ENCODER).parent.stat().st_mode
    finally:
        os.umask(before)
    assert stat.S_IMODE(mode) == 0o777 & ~mask


def test_names_that_cannot_be_are_errors_of_ours(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, reason in (("x" * 300, "File name too long"), ("loop", "Too many levels")):
        with pytest.raises(OutputWriteError, match=f"{reason}.*; nothing was left behind: choose another --out"):
            BundleWriter(tmp_path / name)


def test_no_handle_stays_open(tmp_path: Path) -> None:
    before = set(Path("/proc/self/fd").iterdir()) if Path("/proc/self/fd").exists() else set()
    for _ in range(3):
        with BundleWriter(tmp_path / "toy"):
            pass
    assert not before or set(Path("/proc/self/fd").iterdir()) <= before
