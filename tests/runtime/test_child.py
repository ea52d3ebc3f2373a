"""A child answers, raises what its module raises, and neither outlives the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dasheng_edge.runtime.child import Child, ChildError
from dasheng_edge.runtime.errors import AudioEmptyError

MODULE = """
import os, sys, time
from dasheng_edge.runtime.child import serve
from dasheng_edge.runtime.errors import AudioEmptyError

def answer(request, tell):
    print("said on stdout")
    if "raise" in request:
        raise AudioEmptyError(request["raise"])
    if "exit" in request:
        print("and on stderr", file=sys.stderr, flush=True)
        os._exit(request["exit"])
    for step in range(request.get("steps", 0)):
        tell(step)
    time.sleep(request.get("sleep", 0))
    return {"pid": os.getpid(), "arguments": sys.argv[1:], "variable": os.environ.get("OF_THE_CHILD")}

if __name__ == "__main__":
    serve(answer)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "answering.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("raise SystemExit('cannot start')")
    return tmp_path


def test_requests_are_answered_one_after_the_other(folder: Path) -> None:
    told: list[object] = []
    with Child("answering", "a", "b", environment={"OF_THE_CHILD": "1"}, folder=folder) as child:
        first = child.ask({"steps": 3}, told.append)
        assert child.ask({}) == first == {"pid": child.pid, "arguments": ["a", "b"], "variable": "1"}
    assert told == [0, 1, 2]


def test_errors_of_ours_arrive_by_class_and_message_and_the_child_goes_on(folder: Path) -> None:
    with Child("answering", folder=folder) as child:
        with pytest.raises(AudioEmptyError, match=r"^nothing in it$"):
            child.ask({"raise": "nothing in it"})
        assert child.ask({})["pid"] == child.pid


def test_a_child_that_ends_is_an_error_with_its_last_words(folder: Path) -> None:
    with (
        Child("answering", folder=folder) as child,
        pytest.raises(ChildError, match=r"answering ended with status 3 .*: said on stdout and on stderr") as caught,
    ):
        child.ask({"exit": 3})
    assert caught.value.status == 3
    with pytest.raises(ChildError, match=r"broken ended with status 1 .*: cannot start"):
        Child("broken", folder=folder)


def test_a_killed_child_is_an_error(folder: Path) -> None:
    with Child("answering", folder=folder) as child:
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(ChildError, match=r"was killed by signal 9 .*as when memory is short"):
            child.ask({})


def test_an_interruption_ends_the_child(folder: Path) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Child("answering", folder=folder) as child:
        child.ask({"steps": 1, "sleep": 600}, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_a_child_ends_when_its_stdin_does(folder: Path) -> None:
    command = [sys.executable, "-m", "answering"]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b'{"sleep": 600}\n')
        process.stdin.flush()
        time.sleep(0.5)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=20) == 1
