"""Huge pages are asked for in large buffers, and change nothing but how those are kept."""

from __future__ import annotations

import mmap
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine_options import EngineOptions, EngineSettings, Host
from dasheng_edge.runtime.machine import huge_pages
from dasheng_edge.runtime.machine.huge_pages import MIN_BYTES, HugePages
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.text.llama import llama_cpp_library

PROMPT = ((1, 2, 3),)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="others have no such pages")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    calls: list[bool] = []
    monkeypatch.setattr(HugePages, "ask", lambda _: calls.append(True))
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


def address_of(buffer: mmap.mmap) -> int:
    values = np.frombuffer(buffer, np.uint8)
    return int(values.ctypes.data)


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="this kernel has no huge pages")
def test_large_buffers_that_are_new_are_asked_for() -> None:
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    before = mmap.mmap(-1, 2 * MIN_BYTES, flags=kind)
    mmap.mmap(-1, 4096, flags=kind, prot=mmap.PROT_READ)  # keeps the two apart
    pages = HugePages()
    with mmap.mmap(-1, 3 * MIN_BYTES, flags=kind, prot=mmap.PROT_READ | mmap.PROT_WRITE) as buffer:
        assert "hg" not in flags(address_of(buffer))
        assert pages.ask() >= 3 * MIN_BYTES
        assert "hg" in flags(address_of(buffer))
        assert HugePages().ask() == 0
    before.close()


@LINUX
def test_only_private_writable_memory_of_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text("""55d0a0000000-55d0a2000000 r--p 00000000 fd:00 1234   /usr/bin/python3
55d0a4000000-55d0a6000000 rw-p 00000000 00:00 0      [heap]
7f0000000000-7f0002000000 rw-p 00000000 00:00 0
7f0002000000-7f0004000000 ---p 00000000 00:00 0
7f0004000000-7f0006000000 rw-s 00000000 00:01 77     /dev/zero (deleted)
7f0006000000-7f0008000000 r--p 00000000 00:00 0
7f0008000000-7f0008001000 rw-p 00000000 00:00 0
""")
    monkeypatch.setattr(huge_pages, "_MAPS", maps)
    assert list(huge_pages._buffers()) == [(0x7F0000000000, 0x2000000), (0x7F0008000000, 0x1000)]


def test_systems_without_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huge_pages, "_MAPS", tmp_path / "none")
    assert HugePages().ask() == 0
    monkeypatch.setattr(sys, "platform", "darwin")
    assert HugePages().ask() == 0


def test_the_decoder_asks_once_while_it_loads(tiny_bundle: Path, asked: list[bool]) -> None:
    logits = []
    for wanted in (False, True):
        decoder = Decoder.open(tiny_bundle / DECODER, EngineSettings(huge_pages=wanted))
        try:
            decoder.prefill(PROMPT)
            logits.append(decoder.logits())
        finally:
            decoder.close()
        assert len(asked) == wanted
    np.testing.assert_array_equal(logits[0], logits[1])


def test_a_few_clips_are_not_worth_it(tiny_bundle: Path, asked: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "here", lambda: Host(1, x86=True, huge_pages=True))
    repacked = EngineOptions(weights="repacked")
    Captioner.open(tiny_bundle, options=repacked, few=True).close()
    assert not asked
    Captioner.open(tiny_bundle, options=repacked).close()
    assert asked == [True]


def test_ctrl_c_ends_the_loading(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    llama = llama_cpp_library()
    callback = llama.llama_progress_callback

    def interrupted(go_on: Callable[[float, object], bool]) -> object:
        def told_once(progress: float, data: object) -> bool:
            told.append(True)
            signal.raise_signal(signal.SIGINT)
            return go_on(progress, data)

        return callback(told_once)

    monkeypatch.setattr(llama, "llama_progress_callback", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Decoder.open(tiny_bundle / DECODER, EngineSettings())
    assert told == [True]  # and no tensor was read after it
    assert signal.getsignal(signal.SIGINT) is handler
