"""`dasheng-edge pull`: what it prints where, its exit codes, and what an interruption leaves."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dasheng_edge.export.hub.client import BLOCK_BYTES, Hub
from dasheng_edge.runtime.cli.app import build_app
from tests.fixtures.hub_server import ENCODER, FakeHub, safetensors, serve_hub

REPO, FILE = "mispeech/dasheng-base", "model.safetensors"
CONTENT = safetensors(*ENCODER, data=bytes(2 * BLOCK_BYTES))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with serve_hub() as fake:
        fake.repositories[REPO] = {"config.json": b"{}", FILE: CONTENT, "modeling.py": b"exit()"}
        monkeypatch.setenv("HF_ENDPOINT", fake.endpoint)
        yield fake


def run(*arguments: str) -> Any:
    return CliRunner().invoke(build_app(), ["pull", *arguments])


def test_the_result_goes_to_stdout(fake: FakeHub) -> None:
    result = run(REPO)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (
        f"dasheng-base: {REPO} at {fake.commit(REPO)}, 0.1 MB in 2 files\n"
        "export it with: dasheng-edge export dasheng-base --out BUNDLE\n"
    )
    assert result.stderr.splitlines() == [
        "0/2 files, 0.0 of 0.1 MB", "1/2 files, 0.0 of 0.1 MB", "2/2 files, 0.1 of 0.1 MB",
    ]  # fmt: skip
    assert sorted(path.name for path in Path("dasheng-base").iterdir()) == [".dasheng-edge.json", "config.json", FILE]
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["dasheng-base"]

    again = run(REPO)
    assert (again.exit_code, again.stdout.splitlines()[0]) == (0, result.stdout.splitlines()[0] + ", all here already")


def test_json_is_for_machines(fake: FakeHub) -> None:
    report = json.loads(run(REPO, "--revision", "main", "--out", "a/b", "--json").stdout)
    assert report.pop("seconds") > 0
    assert report == {
        "folder": "a/b", "repo": REPO, "revision": fake.commit(REPO), "files": ["config.json", FILE],
        "bytes": len(CONTENT) + 2, "fetched_bytes": len(CONTENT) + 2, "adapter": False,
    }  # fmt: skip


def test_an_adapter_is_for_the_option(fake: FakeHub) -> None:
    fake.repositories["me/lora"] = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"12345678"}
    assert "dasheng-edge export CHECKPOINT --adapter lora --out BUNDLE" in run("me/lora").stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["./model"], "error: cannot pull './model': it is a path of this machine"),
        (["mispeech/dasheng-bas"], "or it is private; did you mean mispeech/dasheng-base or "),
        ([REPO, "--revision", "v9"], "has no revision 'v9' on 127.0.0.1"),
        ([REPO, "--out", "."], ". is the current folder, which cannot be replaced"),
        ([REPO, "--out", "/"], "/ exists and holds something that was not pulled"),
        ([REPO, "--out", 300 * "x"], "File name too long; choose another --out"),
        ([300 * "x"], "expected OWNER/NAME"),
        ([f"https://github.com/{REPO}"], "not from github.com"),
        (["me/bert"], "me/bert is no model of the Dasheng family"),
        (["me/q"], "quantized checkpoint (quant_method 'gptq'), which cannot be exported; pull one of mispeech/"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(arguments: list[str], expected: str, fake: FakeHub) -> None:
    fake.repositories["me/bert"] = {"config.json": b"{}", FILE: safetensors("bert.pooler.dense.weight")}
    fake.repositories["me/q"] = {"config.json": b'{"quantization_config": {"quant_method": "gptq"}}', FILE: CONTENT}
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert expected in result.stderr
    assert not list(Path.cwd().iterdir())


def test_printed_commands_can_be_typed(fake: FakeHub) -> None:
    *_, command = run(REPO, "--out", "my model").stdout.splitlines()
    assert shlex.split(command.partition(": ")[2]) == ["dasheng-edge", "export", "my model", "--out", "BUNDLE"]
    fake.repositories["me/lora"] = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"12345678"}
    assert "export CHECKPOINT --adapter 'a b' --out BUNDLE" in run("me/lora", "--out", "a b").stdout


def test_a_wait_is_a_line_on_stderr(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    fake.tampered = {FILE: CONTENT[:-1]}
    result = run(REPO)
    waits = [line for line in result.stderr.splitlines() if "trying again" in line]
    assert [line.rpartition("; ")[2] for line in waits] == [f"trying again in {wait} s" for wait in (1, 2, 4, 8, 16)]
    assert all("the connection ended at byte" in line for line in waits)
    assert result.exit_code == 1


def test_wrong_usage_exits_with_2(fake: FakeHub) -> None:
    assert run().exit_code == run(REPO, "--outt", "x").exit_code == 2


def test_what_an_interruption_leaves_is_named(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Iterator[bytes]:
        yield CONTENT[:BLOCK_BYTES]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        blocks = Hub.blocks
        patched.setattr(
            Hub,
            "blocks",
            lambda *args, **how: interrupted() if args[2].bytes == len(CONTENT) else blocks(*args, **how),
        )
        result = run(REPO)
    assert result.exit_code == 130
    note = f"What came stays in {Path.cwd() / '.dasheng-base.partial'}: the same command goes on from there"
    assert result.stderr.splitlines()[-2:] == [note, "interrupted"]
    again = run(REPO, "--json")
    assert again.exit_code == 0, again.stderr


def test_an_interruption_that_leaves_nothing_names_nothing(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Hub, "repository", interrupted)
    result = run(REPO)
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_the_next_one_goes_on(number: signal.Signals, code: int, fake: FakeHub) -> None:
    fake.stall_after = {FILE: BLOCK_BYTES}
    command = [sys.executable, "-c", "from dasheng_edge.runtime.cli.app import main; main()", "pull", REPO]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not any(path.stat().st_size for path in Path().glob(f".dasheng-base.partial/{FILE}.*.incomplete")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == code
    assert "What came stays in" in stderr
    assert "Traceback" not in stderr
    fake.stall_after = {}
    assert json.loads(run(REPO, "--json").stdout)["fetched_bytes"] == len(CONTENT) - BLOCK_BYTES
