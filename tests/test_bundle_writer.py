"""What a writer leaves behind when it is killed: no bundle, and nothing for long."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dasheng_edge.runtime.bundle import ENCODER, GOLDEN, Bundle
from dasheng_edge.runtime.bundle_writer import BundleWriter
from dasheng_edge.runtime.errors import BundleNotFoundError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither these locks nor SIGKILL")

WRITER = """
import sys, time
from dasheng_edge.runtime.bundle_writer import BundleWriter
with BundleWriter(sys.argv[1]) as writer:
    writer.path("encoder.onnx").write_bytes(b"half of it")
    print("written", flush=True)
    time.sleep(60)
"""


def killed_writer(out: Path) -> list[Path]:
    """Folders that a writer left which was killed in the middle."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(out)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    return list(out.parent.iterdir())


def test_what_a_killed_writer_left_is_no_bundle_and_goes_with_the_next(tmp_path: Path) -> None:
    (left,) = killed_writer(tmp_path / "toy")
    with pytest.raises(BundleNotFoundError):
        Bundle.open(left)
    other = tmp_path / ".other.partial-x"
    other.mkdir()

    with BundleWriter(tmp_path / "toy") as writer:
        assert not left.exists()
        assert other.exists()
        with BundleWriter(tmp_path / "toy"):  # one at work is left alone
            assert writer.path(ENCODER).parent.exists()

    assert list(tmp_path.iterdir()) == [other]


def test_where_there_are_no_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def no_locks(*_: object) -> None:
        raise OSError

    (left,) = killed_writer(tmp_path / "toy")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with BundleWriter(tmp_path / "toy"):
        assert left.exists()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with BundleWriter(tmp_path / "toy"):
        assert left.exists()


def test_no_handle_stays_open(tmp_path: Path) -> None:
    before = set(Path("/proc/self/fd").iterdir()) if Path("/proc/self/fd").exists() else set()
    for _ in range(3):
        with BundleWriter(tmp_path / "toy"):
            pass
    assert not before or set(Path("/proc/self/fd").iterdir()) <= before


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("after", [ENCODER, "decoder.F32.gguf", GOLDEN])
def test_an_export_that_is_killed_leaves_no_bundle(after: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from dasheng_edge.runtime.cli import main; main()", "export"]
    with subprocess.Popen(
        [*command, str(tiny_checkpoint), "--out", str(tmp_path / "toy"), "--decoder", "Q8_0"], stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not list(tmp_path.glob(f".toy.partial-*/{after}")):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)

    assert process.returncode == -signal.SIGKILL
    for folder in (tmp_path / "toy", *tmp_path.glob(".toy.partial-*")):
        with pytest.raises(BundleNotFoundError):
            Bundle.open(folder)
