"""Pages of a mapped file are handed back, and what is read through the mapping stays right."""

from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path

import pytest

from dasheng_edge.export.residency import few_mapped_pages, mapped_ranges

MIB = 1 << 20
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the mechanism is Linux's")


def resident_file_bytes() -> int:
    """Mapped file pages of this process that are in memory."""
    status = Path("/proc/self/status").read_text("ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssFile"))


def test_pages_are_handed_back_and_come_again(tmp_path: Path) -> None:
    path = tmp_path / "model"
    content = bytes(range(256)) * (32 * MIB // 256)
    path.write_bytes(content)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        assert mapped_ranges(path) == [(mapped_ranges(path)[0][0], 32 * MIB)]
        before = resident_file_bytes()
        assert mapped[:] == content
        touched = resident_file_bytes()
        with few_mapped_pages(path):
            deadline = time.monotonic() + 10
            while resident_file_bytes() > touched - 24 * MIB and time.monotonic() < deadline:
                time.sleep(0.01)
            dropped = resident_file_bytes()
            assert mapped[:] == content  # while pages come and go

        assert touched - before > 24 * MIB
        assert dropped < touched - 24 * MIB


def test_other_files_and_private_mappings_are_left_alone(tmp_path: Path) -> None:
    path, other = tmp_path / "model", tmp_path / "other"
    for each in (path, other):
        each.write_bytes(bytes(MIB))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as private:
        assert mapped_ranges(path) == []
        assert mapped_ranges(other) == []
        assert private[:1] == b"\0"


def test_the_thread_ends_with_the_block_even_on_an_error(tmp_path: Path) -> None:
    import threading

    with pytest.raises(RuntimeError), few_mapped_pages(tmp_path / "model"):
        raise RuntimeError
    assert not any(thread.name == "few-mapped-pages" for thread in threading.enumerate())


def test_nothing_happens_on_other_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with few_mapped_pages(tmp_path / "model"):
        import threading

        assert not any(thread.name == "few-mapped-pages" for thread in threading.enumerate())
