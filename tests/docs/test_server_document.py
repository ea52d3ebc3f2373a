"""`docs/server.md` and `examples/server`: each example is run against a server, and says what the page shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.places import MICRO, REPOSITORY

pytest.importorskip("fastapi", reason="needs the extra serve")
PAGE = (REPOSITORY / "docs" / "server.md").read_text("utf-8")
EXAMPLES = REPOSITORY / "examples" / "server"
SERVED = re.findall(r"^<!-- served -->\n```sh\n(.*?)```\n\n```text\n(.*?)```$", PAGE, re.MULTILINE | re.DOTALL)
CLIP = "benchmarks/micro/clips/scene_9000006.flac"
SAYS = "a guitar plays, followed by people applauding, followed by a car horn honking"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    if not (MICRO / "manifest.json").is_file() or shutil.which("curl") is None:
        pytest.skip("needs build/micro and curl")
    words = [sys.executable, "-m", "dasheng_edge", "serve", str(MICRO), "--port", "0", "--threads", "1"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as server:
        assert server.stderr is not None
        found = re.search(r"http://\S+(?=/v1)", server.stderr.readline())
        assert found
        yield found[0]
        server.terminate()
        assert server.stderr.read().splitlines()[-1] == "ended"


def said(words: list[str], address: str) -> str:
    environ = os.environ | {"SERVER": f"{address}/v1"}
    return subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, env=environ, check=True).stdout


@pytest.mark.parametrize("example", range(len(SERVED)))
def test_an_example_says_what_the_page_shows(example: int, address: str) -> None:
    code, shown = SERVED[example]
    assert said(["sh", "-e", "-c", code.replace("http://127.0.0.1:8000", address)], address).rstrip() == shown.rstrip()


def test_the_page_has_examples_of_each_route() -> None:
    routes = {route for code, _ in SERVED for route in re.findall(r"/v1/[a-z/]+", code)}
    assert routes == {"/v1/audio/transcriptions", "/v1/chat/completions", "/v1/embeddings"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sh", "client.sh", CLIP], SAYS),
        (["sh", "client.sh", CLIP, "vtt"], "WEBVTT"),
        (["node", "client.mjs", CLIP], SAYS),
        ([sys.executable, "client.py", CLIP], f"caption: {SAYS}\nlabels: guitar; applause; car horn"),
    ],
)
def test_the_clients(words: list[str], says: str, address: str) -> None:
    program, script, *others = words
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")
    if script.endswith(".py"):
        pytest.importorskip("openai")
    assert said([program, str(EXAMPLES / script), *others], address).startswith(says)
    assert len((EXAMPLES / script).read_text("utf-8").splitlines()) <= 25


def test_the_container_file_is_one() -> None:
    """As far as that can be told without a builder: its stages, and that it ends as a user without rights."""
    text = re.sub(r"\\\n", " ", (EXAMPLES / "Containerfile").read_text("utf-8"))
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    known = {"ARG", "FROM", "RUN", "ENV", "COPY", "USER", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT"}
    assert {words[0] for words in lines} <= known
    stages = {words[3] for words in lines if words[0] == "FROM" and len(words) > 2}
    assert stages == {"runtime-cpu", "runtime-gpu", "build-cpu", "build-gpu", "build"}
    sources = {word.partition("=")[2] for words in lines for word in words if word.startswith("--from=")}
    assert sources <= stages
    last = [words[0] for words in lines][::-1]
    assert last.index("USER") < last.index("FROM")
    assert (REPOSITORY / "constraints.txt").is_file()


def test_the_systemd_unit_is_one() -> None:
    unit = (EXAMPLES / "dasheng-edge.service").read_text("utf-8")
    assert "--api-key ${CREDENTIALS_DIRECTORY}/keys" in unit
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    words = ["systemd-analyze", "security", "--offline=true", str(EXAMPLES / "dasheng-edge.service")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert exposure is None or float(exposure[1]) < 2


def test_every_option_and_code_is_on_the_page() -> None:
    from dasheng_edge.runtime.server.keys import KEY_VARIABLE

    server = Path(REPOSITORY / "runtime" / "server")
    codes = {code for path in server.glob("*.py") for code in re.findall(r'code="(\w+)"', path.read_text("utf-8"))}
    named = {"--alias", "--api-key", "--without-key", "--allow-origin", "--max-upload", "--max-seconds", "--queue",
             "--timeout", f"${KEY_VARIABLE}"}  # fmt: skip
    assert [word for word in sorted(named) if word not in PAGE] == []
    told = {"invalid_form", "wrong_type", "missing_required_parameter"}  # which say all by themselves
    assert sorted(code for code in codes - told if f"`{code}`" not in PAGE) == []
