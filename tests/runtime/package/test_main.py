"""The beginning and the end of the process: signals at any moment."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODES = {signal.SIGINT: (130, "interrupted\n"), signal.SIGTERM: (143, ""), signal.SIGHUP: (129, "")}
AT_IMPORT = """
import signal, sys
from dasheng_edge.__main__ import main
where, number = sys.argv[1], int(sys.argv[2])
class AtImport:
    def find_spec(self, name, *_):
        if name == where:
            signal.raise_signal(number)
sys.meta_path.insert(0, AtImport())
sys.argv = ["dasheng-edge", *sys.argv[3:]]
main()
"""
NOT_IGNORED = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # as nohup has it
READY = """
import os, sys
from dasheng_edge.__main__ import main
os.write(1, b"R")
main()
"""


def python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("number", "module"),
    [
        (signal.SIGINT, "dasheng_edge.runtime.cli.app"),
        (signal.SIGTERM, "typer"),
        (signal.SIGINT, "pydantic.main"),
        (signal.SIGHUP, "dasheng_edge.runtime.cli.config"),
        (signal.SIGINT, "dasheng_edge.runtime.bundle.graph_operators"),  # in the command itself
    ],
)
def test_a_signal_while_modules_are_imported(number: signal.Signals, module: str, tiny_bundle: Path) -> None:
    done = python(NOT_IGNORED + AT_IMPORT, module, str(int(number)), "verify", tiny_bundle)
    assert (done.returncode, done.stderr, done.stdout) == (*CODES[number], "")


def test_a_signal_that_is_ignored_stays_so() -> None:
    ignoring = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{AT_IMPORT}"
    done = python(ignoring, "dasheng_edge.runtime.cli.app", str(int(signal.SIGHUP)), "--version")
    assert (done.returncode, done.stderr) == (0, "")


def test_next_to_nothing_is_imported_before_there_is_a_handler() -> None:
    code = "import sys; had = {*sys.modules}; import dasheng_edge.__main__; print(*{*sys.modules} - had)"
    brought = {name.partition(".")[0] for name in python(code).stdout.split() if name != "dasheng_edge.__main__"}
    assert "dasheng_edge" in brought
    assert not {"typing", "contextlib", "typer", "importlib"} & brought
    assert len(brought) < 15


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment(number: signal.Signals, tiny_bundle: Path) -> None:
    for moment in range(1, 21):
        command = [sys.executable, "-c", READY, "verify", str(tiny_bundle)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.read(1) == "R"
            time.sleep(0.025 * moment)
            process.send_signal(number)
            _, said = process.communicate()
        if process.returncode not in (0, -number):  # done, or Python gave its handlers up
            assert (process.returncode, said) == CODES[number]
