"""Processes that do one thing when they are asked to: each has its own libraries, threads and memory.

PyTorch and llama.cpp bring an OpenMP each, whose threads wait for work in a loop. In one process, or at one time, they
would take the cores from whatever is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.records.measured_run import memory_of
from benchmarks.records.record import REPOSITORY, BenchmarkError

Message = dict[str, Any]
# PyTorch's threads sleep while they wait for each other. Looping, its default, they are many times slower as soon as
# anything else runs on the machine, and not faster where nothing does.
PASSIVE: Mapping[str, str] = {"OMP_WAIT_POLICY": "passive"}


def serve(answer: Callable[[Message], Message]) -> None:
    """Answer requests, one JSON object a line, until there are no more; the first answer says that all is ready.

    Whatever else is printed goes to stderr.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        _say(out, {"ready": True})
        for line in sys.stdin:
            _say(out, answer(json.loads(line)))


def _say(out: Any, message: Message) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


class Worker:
    """A module of this folder that runs in a process of its own and serves."""

    def __init__(self, module: str, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", f"benchmarks.peers.{module}", *map(str, arguments)]
        self.name = module
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, **request: Any) -> Message:
        """The answer to a request.

        Raises:
            BenchmarkError: the process ended instead.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead, which is said below
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> Message:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            raise BenchmarkError(f"{self.name} {how} instead of answering; what it said is above, if it is a lack of "
                                 "memory close other programs")  # fmt: skip
        message: Message = json.loads(line)
        return message

    def memory(self) -> dict[str, int]:
        """Bytes of the process by the names of /proc, as `memory_of`."""
        return memory_of(self._process.pid)

    def close(self) -> None:
        """End the process; harmless when repeated."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._process.wait()


def torch_arguments(checkpoint: Path, dtype: str, threads: int) -> Sequence[str | Path]:
    """Arguments of `torch_worker`."""
    return checkpoint.resolve(), dtype, "--threads", str(threads)
