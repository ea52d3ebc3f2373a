"""Pages of a mapped file are handed back, and what is read through the mapping stays right."""

from __future__ import annotations

import mmap
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dasheng_edge.export.gguf import residency
from dasheng_edge.export.gguf.checks import check_golden
from dasheng_edge.export.gguf.residency import SMALL_BYTES, mapped_ranges, pages_handed_back
from dasheng_edge.quant.decoder.gguf_file import tensor_bytes
from dasheng_edge.runtime.bundle.bundle import DECODER, Bundle
from dasheng_edge.runtime.bundle.golden import read_golden

MIB = 1 << 20
PAGE = mmap.PAGESIZE
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the mechanism is Linux's")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """32 MiB that differ from place to place."""
    path = tmp_path / "model"
    path.write_bytes(b"".join(index.to_bytes(8, "little") * 512 for index in range(32 * MIB // 4096)))
    return path


@contextmanager
def mapped(path: Path, offset: int = 0) -> Generator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset) as pages:
        yield pages


def resident_file_bytes() -> int:
    """Mapped file pages of this process that are in memory."""
    status = Path("/proc/self/status").read_text("ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssFile"))


def wait_until_below(wanted: int) -> int:
    deadline = time.monotonic() + 10
    while resident_file_bytes() > wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    return resident_file_bytes()


def test_pages_are_handed_back_and_come_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "SMALL_BYTES", MIB)
    content = path.read_bytes()
    with mapped(path) as pages:
        before = resident_file_bytes()
        assert pages[:] == content
        touched = resident_file_bytes()
        with pages_handed_back(path, 0, len(content)):
            dropped = wait_until_below(touched - 24 * MIB)
            assert pages[:] == content  # while pages come and go

        assert touched - before > 24 * MIB
        assert dropped < touched - 24 * MIB


def test_only_whole_pages_of_the_named_part_are_handed_back(path: Path) -> None:
    with mapped(path) as pages:
        ((address, size),) = mapped_ranges(path, 0, 32 * MIB)
        assert size == 32 * MIB
        assert mapped_ranges(path, 1, 10 * PAGE + 1) == [(address + PAGE, 9 * PAGE)]
        assert mapped_ranges(path, PAGE + 1, 2 * PAGE + 1) == []
        assert pages[:1] == b"\0"
    with mapped(path, offset=16 * PAGE):
        ((address, size),) = mapped_ranges(path, 0, 32 * MIB)
        assert size == 32 * MIB - 16 * PAGE
        assert mapped_ranges(path, 0, 16 * PAGE) == []
        assert mapped_ranges(path, 8 * PAGE, 20 * PAGE) == [(address, 4 * PAGE)]


def test_other_files_and_private_mappings_are_left_alone(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(MIB))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as private:
        assert mapped_ranges(path, 0, 32 * MIB) == []
        assert private[:1] == b"\0"
    with mapped(path):
        assert mapped_ranges(other, 0, MIB) == []


def at_work() -> bool:
    return any(thread.name == "pages-handed-back" for thread in threading.enumerate())


def test_the_thread_ends_with_the_block_even_on_an_error(path: Path) -> None:
    with pages_handed_back(path, 0, SMALL_BYTES):
        assert at_work()
    assert not at_work()
    with pytest.raises(ZeroDivisionError), pages_handed_back(path, 0, SMALL_BYTES):
        _ = 1 / 0
    assert not at_work()


def test_small_files_and_other_systems_are_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pages_handed_back(path, 0, SMALL_BYTES - 1):
        assert not at_work()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pages_handed_back(path, 0, SMALL_BYTES):
        assert not at_work()


def test_a_decoder_computes_the_same_while_its_pages_come_and_go(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = tiny_bundle / DECODER
    texts = [clip.text for clip in read_golden(Bundle.open(tiny_bundle)) if clip.text]
    want = check_golden(decoder, texts, "F32").attention
    first, last = tensor_bytes(decoder)
    handed_back: list[tuple[int, int]] = []

    def noted(path: Path, start: int, stop: int) -> list[tuple[int, int]]:
        ranges = mapped_ranges(path, start, stop)
        handed_back.extend(ranges)
        return ranges

    monkeypatch.setattr(residency, "SMALL_BYTES", 1)
    monkeypatch.setattr(residency, "INTERVAL_S", 1e-4)
    monkeypatch.setattr(residency, "mapped_ranges", noted)

    assert check_golden(decoder, texts, "F32").attention == want
    assert handed_back
    assert all(size <= last - first for _, size in handed_back)
    assert 0 < first < last <= decoder.stat().st_size
