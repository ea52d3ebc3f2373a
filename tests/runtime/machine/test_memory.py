"""Memory that is asked for before an engine takes it: what would end the process is an error of ours."""

from __future__ import annotations

import ctypes
import errno
import json
import re
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.runtime.errors import BundleFileError, MemoryShortError
from dasheng_edge.runtime.machine import memory
from dasheng_edge.runtime.machine.memory import memory_errors, require, short_of_memory, started_thread

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and limits")

# What is done with so many megabytes of addresses to spare, in a child for each.
LIMITED = """
import json, os, resource, sys
from pathlib import Path
import numpy as np
from dasheng_edge.runtime import Captioner, Embedder
from dasheng_edge.runtime.errors import MemoryShortError
from dasheng_edge.runtime.audio.onnx_session import load_onnxruntime

bundle, what, *spares = sys.argv[1:]
clip = (np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
long = (np.random.default_rng(0).normal(0, 0.1, 16000 * 20), 16000)

def limit(spare):
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + (spare << 20),) * 2)

def child(spare):
    if what == "open":
        limit(spare)
        Captioner.open(bundle, threads=1).caption(clip, max_new_tokens=2)
    elif what == "embed":
        limit(spare)
        Embedder.open(bundle, threads=1).embed(long)
    else:
        captioner = Captioner.open(bundle, threads=1)
        if what == "batch":
            captioner.caption(clip, max_new_tokens=1)
        limit(spare)
        if what == "batch":
            captioner.caption_batch([clip] * 32, max_new_tokens=4, batch=32)
        else:
            captioner.caption(long, max_new_tokens=2)

for spare in map(int, spares):
    if not os.fork():
        try:
            child(spare)
        except MemoryShortError:
            os._exit(3)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@linux
@pytest.mark.parametrize(
    ("what", "spares"), [("open", (0, 60, 1500)), ("embed", (40, 1500)), ("caption", (20, 900)),
                         ("batch", (0, 34, 900))]
)  # fmt: skip
def test_too_little_memory_is_an_error_and_no_signal(tiny_bundle: Path, what: str, spares: tuple[int, ...]) -> None:
    command = [sys.executable, "-c", LIMITED, str(tiny_bundle), what, *map(str, spares)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    codes = [int(line) for line in ran.stdout.split()]
    assert set(codes) <= {0, 3}, (codes, ran.stderr)
    assert (codes[0], codes[-1], len(codes)) == (3, 0, len(spares)), (codes, ran.stderr)


def test_what_cannot_be_had_is_refused() -> None:
    require("a little", "no fix", own=1 << 20, mapped=1 << 30)
    with pytest.raises(MemoryShortError, match=r"^all of it needs about \d+ MB of memory.*: take less$"):
        require("all of it", "take less", own=1 << 60)


@linux
def test_files_do_not_count_as_memory_and_memory_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(
        "MemTotal: 9000 kB\nMemFree: 1000 kB\nMemAvailable: 10 kB\nBuffers: 1 kB\nCached: 3000 kB\n"
        "Shmem: 500 kB\nSReclaimable: 20 kB\nSwapFree: 4000 kB\n"
    )
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "none")
    most = (1000 + 1 + 3000 - 500 + 20 + 4000) << 10  # all but what only `MemAvailable` calls scarce
    require("it", "", own=most, mapped=1 << 30)
    with pytest.raises(MemoryShortError, match="it needs about 33 MB of memory, 8 MB are left"):
        require("it", "", own=most + 1)


@linux
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("below", ["", "/a", "/a/b"])
def test_limits_of_control_groups_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: int, below: str
) -> None:
    root = tmp_path / "memory" if version == 1 else tmp_path
    names = ("limit_in_bytes", "usage_in_bytes", "total_") if version == 1 else ("max", "current", "")
    group = root / below.strip("/")
    group.mkdir(parents=True, exist_ok=True)
    (group / f"memory.{names[0]}").write_text("90000000\n")
    (group / f"memory.{names[1]}").write_text("80000000\n")
    (group / "memory.stat").write_text(f"anon 1\n{names[2]}inactive_file 3000000\n{names[2]}active_file 2000000\n")
    lines = "2:cpu:/x\n3:memory:/a/b\n" if version == 1 else "0::/a/b\n"
    (tmp_path / "own").write_text(lines)
    meminfo = re.sub(r"SwapFree: .*", "SwapFree: 1000 kB", Path("/proc/meminfo").read_text("utf-8"))
    (tmp_path / "meminfo").write_text(meminfo)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    left = 15_000_000 + (1000 << 10)
    require("it", "", own=left)
    with pytest.raises(MemoryShortError, match="16 MB are left"):
        require("it", "", own=left + 1)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory"), RuntimeError("std::bad_alloc"),
        ImportError("libgomp.so.1: failed to map segment from shared object"),
        Exception("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bad allocation"),
        RuntimeError("Failed to allocate memory for requested buffer of size 1024"),
    ],
)  # fmt: skip
def test_lack_of_memory_is_told_in_one_way(error: Exception) -> None:
    with (
        pytest.raises(MemoryShortError, match=r"not enough memory for a cake .*: bake less"),
        memory_errors("a cake", "bake less"),
    ):
        raise error
    wrapped = BundleFileError("cannot read it")
    wrapped.__cause__ = error
    assert short_of_memory(wrapped) is not None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"), ImportError("cannot allocate memory in static TLS block"),
        BundleFileError("cannot open out of memory.wav"), json.JSONDecodeError("no", "", 0), KeyError("memory"),
    ],
)  # fmt: skip
def test_other_errors_stay(error: Exception) -> None:
    with pytest.raises(type(error)), memory_errors("a cake", "bake less"):
        raise error


def test_a_thread_that_cannot_begin_is_an_error_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    started_thread("test", done.set).join(10)
    assert done.is_set()
    with monkeypatch.context() as patch:
        patch.setattr(memory, "_can_map", lambda *_, **__: False)
        with pytest.raises(MemoryShortError, match="a thread needs about"):
            started_thread("test", done.set)

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(MemoryShortError, match=r"cannot start a thread \(can't start new thread\): .*ulimit -v, -u"):
        started_thread("test", done.set)


SMAPS = """\
1000-2000 r-xp 00000000 08:01 7                          /x/site-packages/av/_core.so
Rss:                   4 kB
Anonymous:             0 kB
2000-3000 r--p 00001000 08:01 7                          /x/site-packages/av.libs/libavcodec.so.62
Anonymous:             4 kB
3000-5000 r--p 00002000 08:01 7                          /x/site-packages/onnxruntime/capi/a b.so (deleted)
Anonymous:             0 kB
5000-6000 rw-p 00002000 08:01 7                          /x/site-packages/onnxruntime/capi/a.so
Anonymous:             0 kB
6000-7000 r-xp 00000000 08:01 8                          /x/lib/libpython3.11.so.1.0
Anonymous:             0 kB
7000-8000 r--s 00000000 08:01 9                          /x/onnxruntime/decoder.gguf
Anonymous:             0 kB
8000-9000 r-xp 00000000 08:01 9                          /x/lib/libplugin.so
Anonymous:             0 kB
9000-a000 r-xp 00000000 00:00 0
Anonymous:             0 kB
"""


def test_pages_go_that_files_have_and_that_stay_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[tuple[int, int]] = []

    class Library:
        def __init__(self, _: None) -> None:
            def madvise(begin: int, size: int, _: int) -> int:
                given_back.append((begin, size))
                return 0

            self.madvise = madvise

    (tmp_path / "smaps").write_text(SMAPS)
    monkeypatch.setattr(memory, "_PAGES", tmp_path / "smaps")
    monkeypatch.setattr(ctypes, "CDLL", Library)
    memory.release_read_pages()
    assert given_back == [(0x1000, 0x1000), (0x3000, 0x2000), (0x6000, 0x1000)]
    monkeypatch.setattr(memory, "_PAGES", tmp_path / "none")
    memory.release_read_pages()  # not Linux
    assert len(given_back) == 3


@linux
def test_pages_that_went_are_found_again(tiny_bundle: Path) -> None:
    from dasheng_edge.runtime import Captioner

    clip = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32), 16_000
    with Captioner.open(tiny_bundle, threads=1) as captioner:
        want = captioner.caption(clip, max_new_tokens=3)
        before = _mapped_bytes()
        memory.release_read_pages()
        assert _mapped_bytes() < before
        assert captioner.caption(clip, max_new_tokens=3).tokens == want.tokens


def _mapped_bytes() -> int:
    """Resident pages of files."""
    return int(Path("/proc/self/statm").read_text().split()[2]) * resource.getpagesize()
