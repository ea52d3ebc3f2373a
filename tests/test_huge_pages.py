"""Huge pages are asked for in large buffers, and change nothing but how those are kept."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.runtime import huge_pages, text_model
from dasheng_edge.runtime.bundle import DECODER, Bundle
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.decoder import Decoder
from dasheng_edge.runtime.huge_pages import LEAST_BYTES, ask_for_huge_pages
from dasheng_edge.runtime.parts import default_choice

PROMPT = ((1, 2, 3),)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    calls: list[bool] = []
    monkeypatch.setattr(text_model, "ask_for_huge_pages", lambda: calls.append(True))
    return calls


def flags(address: int) -> list[str]:
    """What the kernel says of the mapping at an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        name, *values = line.split()
        if "-" in name and not name.endswith(":"):
            start, end = (int(part, 16) for part in name.split("-"))
            inside = start <= address < end
        elif inside and name == "VmFlags:":
            return values
    raise AssertionError(f"nothing is mapped at {address:x}")


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="this kernel has no huge pages")
def test_large_buffers_are_asked_for() -> None:
    with mmap.mmap(-1, 2 * LEAST_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as buffer:
        values = np.frombuffer(buffer, np.uint8)
        address = values.ctypes.data
        assert "hg" not in flags(address)
        assert ask_for_huge_pages() >= 2 * LEAST_BYTES
        assert "hg" in flags(address)
        del values


def test_only_private_writable_memory_of_no_file() -> None:
    maps = """55d0a0000000-55d0a2000000 r--p 00000000 fd:00 1234   /usr/bin/python3
55d0a4000000-55d0a6000000 rw-p 00000000 00:00 0      [heap]
7f0000000000-7f0002000000 rw-p 00000000 00:00 0
7f0002000000-7f0004000000 ---p 00000000 00:00 0
7f0004000000-7f0006000000 rw-s 00000000 00:01 77     /dev/zero (deleted)
7f0006000000-7f0008000000 r--p 00000000 00:00 0
7f0008000000-7f0008001000 rw-p 00000000 00:00 0
"""
    assert list(huge_pages._anonymous(maps)) == [(0x7F0000000000, 0x2000000), (0x7F0008000000, 0x1000)]


def test_systems_without_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huge_pages, "_MAPS", tmp_path / "none")
    assert ask_for_huge_pages() == 0
    monkeypatch.setattr(sys, "platform", "darwin")
    assert ask_for_huge_pages() == 0


def test_the_decoder_asks_once_while_it_loads(tiny_bundle: Path, asked: list[bool]) -> None:
    logits = []
    for wanted in (False, True):
        decoder = Decoder.open(tiny_bundle / DECODER, n_threads=1, huge_pages=wanted)
        try:
            decoder.prefill(PROMPT)
            logits.append(decoder.logits())
        finally:
            decoder.close()
        assert len(asked) == wanted
    np.testing.assert_array_equal(logits[0], logits[1])


def test_one_clip_is_not_worth_it(tiny_bundle: Path, asked: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    stored, _ = Bundle.open(tiny_bundle).text_facts()
    choice = default_choice(stored, 1).model_copy(update={"huge_pages": True})
    monkeypatch.setattr("dasheng_edge.runtime.parts.default_choice", lambda *_: choice)
    Captioner.open(tiny_bundle, once=True).close()
    assert not asked
    Captioner.open(tiny_bundle).close()
    assert asked == [True]
