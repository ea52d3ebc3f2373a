"""Forks: a child process has the memory of engines that were opened before, and none of the threads they wait for.

Computing there waits for good, and so does freeing ONNX Runtime's sessions. So what was opened before says so when it
is used in a child, and is never freed there.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

from dasheng_edge.runtime.errors import ForkedError

_engines: weakref.WeakSet[object] = weakref.WeakSet()  # of all homes in this process
_pool_of: list[int] = []  # the process in which llama.cpp's pool of threads was started, if it was
_FIX = (
    "start processes with multiprocessing.get_context('spawn'), or 'forkserver', and open one in each (Linux forks by "
    "default before Python 3.14)"
)


class Home:
    """The process that engines were opened in, and where alone they can compute.

    `what` they are, for messages; `engines` is what holds them.
    """

    def __init__(self, what: str, engines: object = None) -> None:
        self._process, self._what = os.getpid(), what
        if engines is not None:
            _register()
            _engines.add(engines)

    @property
    def here(self) -> bool:
        """Whether this is that process."""
        return os.getpid() == self._process

    def check(self) -> None:
        """Refuse to compute in a child.

        Raises:
            ForkedError: this is a child that was forked since.
        """
        if not self.here:
            raise ForkedError(
                f"the {self._what} was opened in process {self._process}, and this is process {os.getpid()}, which was "
                f"forked from it without the threads that it needs; {_FIX}"
            )


def starts_pool(threads: int) -> None:
    """llama.cpp computes with so many threads from now on: with several, a pool that lives as long as the process."""
    if threads > 1 and not _pool_of:
        _pool_of.append(os.getpid())


def check_pool(threads: int) -> None:
    """Refuse to open a decoder in a child of a process whose pool of threads it would wait for.

    Raises:
        ForkedError: it would.
    """
    if threads > 1 and _pool_of and _pool_of[0] != os.getpid():
        raise ForkedError(
            f"process {_pool_of[0]} has captioned with several threads, and this process, {os.getpid()}, was forked "
            f"from it without them and would wait for them; {_FIX}, or ask for threads=1 here"
        )


def only_here(free: Callable[[Any], object]) -> Callable[[Any], None]:
    """What frees something in this process, and does nothing in children: a GPU's driver would end them."""
    process = os.getpid()

    def freed(thing: Any) -> None:
        if os.getpid() == process:
            free(thing)

    return freed


@cache
def _register() -> None:
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=_keep_forever)


def _keep_forever() -> None:
    """In a child: a reference too many, so that nothing frees what was opened before, not even the end of Python."""
    for engines in _engines:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engines))
