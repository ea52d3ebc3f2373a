"""Processes that do one thing when they are asked to: each has its own libraries, threads and memory.

PyTorch and llama.cpp bring an OpenMP each, whose threads wait for work in a loop. In one process, or at one time, they
would take the cores from whatever is measured.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.places import REPOSITORY
from benchmarks.records.measured_run import memory_of
from benchmarks.records.record import BenchmarkError
from dasheng_edge.runtime.child import Child, ChildError

Message = dict[str, Any]
# PyTorch's threads sleep while they wait for each other. Looping, its default, they are many times slower as soon as
# anything else runs on the machine, and not faster where nothing does.
PASSIVE: Mapping[str, str] = {"OMP_WAIT_POLICY": "passive"}


class Worker:
    """A module of this folder that runs in a process of its own and serves; its arguments are those of its command."""

    def __init__(self, module: str, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> None:
        command = [str(argument) for argument in arguments]
        self.name = module
        with _dead_workers():
            self._child = Child(f"benchmarks.peers.{module}", *command, environment=environment, folder=REPOSITORY)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, **request: Any) -> Message:
        """The answer to a request.

        Raises:
            BenchmarkError: the process ended instead.
        """
        with _dead_workers():
            message: Message = self._child.ask(request)
        return message

    def memory(self) -> dict[str, int]:
        """Bytes of the process by the names of /proc, as `memory_of`."""
        return memory_of(self._child.pid)

    def close(self) -> None:
        """End the process; harmless when repeated."""
        self._child.close()


@contextmanager
def _dead_workers() -> Generator[None]:
    try:
        yield
    except ChildError as error:
        raise BenchmarkError(f"{error}; if that is a lack of memory, close other programs") from error


def torch_arguments(checkpoint: Path, dtype: str, threads: int) -> Sequence[str | Path]:
    """Arguments of `torch_worker`."""
    return checkpoint.resolve(), dtype, "--threads", str(threads)
