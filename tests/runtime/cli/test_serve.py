"""`serve` as a command: what it refuses before anything is opened, and how it begins and ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dasheng_edge.runtime.cli.app import build_app

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")


def run(*words: str) -> Any:
    return CliRunner().invoke(build_app(), ["serve", *words])


def test_a_network_is_not_served_without_a_key_unless_that_is_said(tiny_bundle: Path, tmp_path: Path) -> None:
    refused = run(str(tiny_bundle), "--host", "0.0.0.0")
    assert refused.exit_code == 2
    assert "--api-key" in refused.stderr
    assert "--without-key" in refused.stderr
    key = tmp_path / "key"
    key.write_text("k" * 16)
    both = run(str(tiny_bundle), "--host", "0.0.0.0", "--api-key", str(key), "--without-key")
    assert both.exit_code == 2


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--api-key", "nowhere"], 1, "nowhere"),
        (["--alias", "x"], 2, "NAME=MODEL"),
        (["--alias", "x=y"], 1, "names no model"),
        (["--host", "no such host", "--without-key"], 1, "cannot listen"),
        (["--host", "203.0.113.1", "--without-key"], 1, "cannot listen"),
    ],
)
def test_what_cannot_be_is_a_sentence(words: list[str], code: int, says: str, tiny_bundle: Path) -> None:
    result = run(str(tiny_bundle), *words)
    assert (result.exit_code, says in result.stderr) == (code, True), result.stderr


def test_a_port_that_is_taken_is_a_sentence(tiny_bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run(str(tiny_bundle), "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 1
    assert "another program uses it" in result.stderr


@pytest.fixture
def process(tiny_bundle: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server, and its address."""
    words = ["serve", str(tiny_bundle), "--port", "0", "--threads", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "dasheng_edge", *words], stderr=subprocess.PIPE, text=True, env={**os.environ}
    ) as server:
        assert server.stderr is not None
        said = server.stderr.readline()
        found = re.search(r"http://\S+(?=/v1)", said)
        assert found, said + server.stderr.read()
        yield server, found[0]
        server.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(number: signal.Signals, process: tuple[subprocess.Popen[str], str]) -> None:
    server, address = process
    with urllib.request.urlopen(f"{address}/ready") as answer:
        assert json.load(answer) == {"status": "ready"}
    server.send_signal(number)
    _, said = server.communicate(timeout=20)
    assert (server.returncode, said.splitlines()[-1]) == (0, "ended")


@pytest.mark.slow
def test_heads_that_do_not_come_are_not_waited_for(process: tuple[subprocess.Popen[str], str]) -> None:
    _, address = process
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as slow:
        slow.settimeout(60)
        slow.sendall(b"GET /health HT")
        start = time.monotonic()
        assert slow.recv(1) == b""
        assert 15 < time.monotonic() - start < 40
