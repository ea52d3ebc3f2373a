"""A module of ours in a process of its own, which answers requests: JSON, one object a line, on stdin and stdout.

    parent: with Child("dasheng_edge.some.module") as child: child.ask({"n": 2})
    child:  if __name__ == "__main__": serve(answer)

A process has its own libraries, threads and memory, can be ended at any time, and takes nobody with it when a library
aborts. On the pipe, the child says {"ready": true} once, then for each request any number of {"told": ...} and one
{"answer": ...} or {"error": class name, "message": ...}. What it or its libraries print goes to its stderr, which is
kept in a file and quoted when the child ends without an answer.

Neither outlives the other by much: the parent kills its child when its block ends, by Ctrl-C too, and the child ends
when its stdin does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

from . import errors

Tell: TypeAlias = Callable[[Any], None]
_QUOTED_WORDS = 60  # of what the child said last


class ChildError(errors.DashengEdgeError, RuntimeError):
    """A child ended without an answer.

    Attributes:
        status: exit status, or minus the signal that ended it.
        said: the last words of its stderr.
    """

    def __init__(self, module: str, status: int, said: str) -> None:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        last = said or "it said nothing, as when memory is short"
        super().__init__(f"{module} {how} instead of answering: {last}")
        self.status, self.said = status, last


class Child:
    """Starts `python -m module arguments`, and waits until it is ready.

    `environment` is added to this process's. The module is looked for where this process finds its own, and first in
    `folder` where one is given.

    Raises:
        ChildError: it ended before it was ready.
    """

    def __init__(
        self, module: str, *arguments: str, environment: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> None:
        self.module = module
        own = {} if folder else {"PYTHONSAFEPATH": "1"}  # else Python 3.11 looks into the working directory first
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", module, *arguments], cwd=folder, env={**os.environ, **own, **(environment or {})},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
        )  # fmt: skip
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, request: Any, tell: Tell = lambda _: None) -> Any:
        """The answer to a request; `tell` gets what the child tells on the way.

        Raises:
            DashengEdgeError: of the class that the child raised, with its message.
            ChildError: the child ended instead.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone, which is noticed below
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        while "told" in (message := self._receive()):
            tell(message["told"])
        if "error" in message:
            raise getattr(errors, message["error"])(message["message"])
        return message["answer"]

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):  # killed, perhaps while it wrote
            status = self._process.wait()
            self._stderr.seek(0)
            said = self._stderr.read().decode("utf-8", "replace").split()
            raise ChildError(self.module, status, " ".join(said[-_QUOTED_WORDS:]))
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """End the process; harmless when repeated."""
        self._process.kill()
        with suppress(BrokenPipeError), self._process:  # closes the pipes and waits
            pass
        self._stderr.close()


def serve(answer: Callable[[Any, Tell], Any]) -> None:
    """Answer requests until stdin ends: all that a child does. `answer` gets a request, and what tells of its steps.

    Errors of ours go to the parent by class and message; others end the process with their traceback.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent decides
    requests: SimpleQueue[bytes] = SimpleQueue()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def say(kind: str, content: Any, **more: str) -> None:
            out.write(json.dumps({kind: content, **more}) + "\n")
            out.flush()

        threading.Thread(target=_read, args=(requests,), daemon=True).start()
        say("ready", content=True)
        while True:
            try:
                result = answer(json.loads(requests.get()), lambda content: say("told", content))
            except errors.DashengEdgeError as error:  # noqa: PERF203  # one request may fail and the next not
                say("error", type(error).__name__, message=str(error))
            else:
                say("answer", result)


def _read(requests: SimpleQueue[bytes]) -> None:
    """In a thread of its own, so that the end of stdin, which means that nobody waits any more, ends any work."""
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(1)
