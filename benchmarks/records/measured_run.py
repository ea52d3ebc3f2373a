"""Runs one command in a process of its own and says how long it took and how much memory it had."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_S = 0.1
STOP_S = 10.0  # how long an interrupted command may take to clean up
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


@dataclass(frozen=True)
class MeasuredRun:
    """A finished command.

    `peak_rss_bytes` is the larger of the kernel's own peak of any one process and the sampled sum over all processes
    at one time. It counts mapped files, whose pages the system may drop at will; `peak_anonymous_bytes` counts only
    what the processes had allocated, as sampled.
    """

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    peak_rss_bytes: int
    peak_anonymous_bytes: int | None  # None where the system does not tell, or the process ended too soon


def run_measured(command: Sequence[str], cwd: Path) -> MeasuredRun:
    """Run a command to its end. An interruption ends the command too."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        try:
            status, peak_rss, anonymous = _wait(process.pid)
        except BaseException:
            _stop(process)
            raise
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return MeasuredRun(process.returncode, texts[0], texts[1], seconds, peak_rss, anonymous)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a command as Ctrl-C does, so that it removes half-written files; kill it if that takes long."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(pid: int) -> tuple[int, int, int | None]:
    """Wait status, peak RSS and largest sampled anonymous RSS in bytes."""
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peaks: dict[str, int] = {}
    while True:
        # wait4 counts this child and its descendants; RUSAGE_CHILDREN would count earlier children too
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        for key, size in memory_of(pid).items():
            peaks[key] = max(size, peaks.get(key, 0))
        time.sleep(SAMPLE_S)
    exact = usage.ru_maxrss * _RSS_UNIT
    if usage.ru_maxrss <= inherited:  # Linux starts a child with its parent's peak; the new program's own is sampled
        exact = peaks.get("VmHWM", exact)
    return status, max(exact, peaks.get("VmRSS", 0)), peaks.get("RssAnon")


def memory_of(pid: int) -> dict[str, int]:
    """Bytes of a process and its descendants together, by the names of /proc; empty where the system has none.

    `VmRSS` is what is resident now, `RssAnon` the part of it that no file backs, `VmHWM` the sum of the peaks.
    """
    total: dict[str, int] = {}
    for one in _family(pid):
        with contextlib.suppress(OSError):  # it has just ended
            status = Path(f"/proc/{one}/status").read_text()
            for key, size in re.findall(r"^(VmHWM|VmRSS|RssAnon):\s+(\d+) kB$", status, re.MULTILINE):
                total[key] = total.get(key, 0) + int(size) * 1024
    return total


def _family(pid: int) -> Iterator[int]:
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in path.read_text().split():
                yield from _family(int(child))
