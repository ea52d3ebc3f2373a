"""The command line where extras, or the packages that need them, are not installed: what it needs is a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.places import SMALLEST_BUNDLE

EXTRAS = ("torch", "transformers", "peft", "onnx", "onnxscript", "onnx_ir", "safetensors", "gguf", "yaml",
          "huggingface_hub", "jiwer", "matplotlib", "sounddevice", "aac_metrics", "scipy", "fastapi", "starlette",
          "uvicorn", "python_multipart", "prometheus_client", "websockets")  # fmt: skip
ENGINES = ("onnxruntime", "llama_cpp")
OURS = ("dasheng_edge.export", "dasheng_edge.quant")
# Several commands in a process, since each takes a second to start. Modules are hidden by a finder that says that they
# are not there, as the ones that look into folders do where they find nothing.
SCRIPT = """
import contextlib, importlib, io, json, sys
hidden = set(json.loads(sys.argv[1]))

def hides(find):
    def found(name, *others):
        return None if any(f"{name}.".startswith(f"{one}.") for one in hidden) else find(name, *others)
    return found

for finder in sys.meta_path:
    with contextlib.suppress(AttributeError, TypeError):
        finder.find_spec = hides(finder.find_spec)
import typer.testing
from dasheng_edge.runtime.cli.app import build_app
found = []
for words in json.loads(sys.argv[2]):
    done = typer.testing.CliRunner().invoke(build_app(), words, prog_name="dasheng-edge")
    failure = None if done.exception is None or isinstance(done.exception, SystemExit) else repr(done.exception)
    found.append([done.exit_code, done.stdout, done.stderr, failure])
print(json.dumps(found))
"""


def run(hidden: tuple[str, ...], *commands: list[str], home: Path) -> list[tuple[int, str, str, str | None]]:
    """Exit code, stdout, stderr and what was raised of each command."""
    places = dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), str(home))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(hidden), json.dumps(commands)], env=os.environ | places,
        capture_output=True, encoding="utf-8", check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [tuple(one) for one in json.loads(done.stdout)]


BUNDLE = str(SMALLEST_BUNDLE)
COMMANDS: dict[str, list[str]] = {
    "caption": [BUNDLE, "a.wav"],
    "listen": [BUNDLE],
    "serve": [BUNDLE],
    "embed": [BUNDLE, "a.wav", "--out", "a.npz"],
    "verify": [BUNDLE],
    "bench": [BUNDLE],
    "export": ["checkpoint", "--out", "bundle"],
    "pull": ["owner/name"],
    "quantize": [BUNDLE, "--recipe", "small", "--out", "small"],
    "compare": [BUNDLE, BUNDLE, "--clips", "clips", "--out", "report"],
    "graphs": [BUNDLE, "--out", "graphs"],
}


@pytest.mark.parametrize("hidden", [EXTRAS + OURS, EXTRAS + ENGINES + OURS[:1]])
def test_what_needs_no_extra_works_without(hidden: tuple[str, ...], tmp_path: Path) -> None:
    works = [["--help"], ["--version"], ["info", BUNDLE], ["info", BUNDLE, "--json"], ["config"], ["caption", "--help"]]
    shown = run(hidden, *works, ["doctor"], ["doctor", "--json"], [], home=tmp_path)
    assert [(code, failure) for code, _, _, failure in shown] == [(0, None)] * len(works) + [
        *[(int("onnxruntime" in hidden), None)] * 2, (2, None)
    ]  # fmt: skip
    for name, package in zip(("export", "quantize"), OURS, strict=True):
        assert (f"  {name} " in shown[0][1]) == (package not in hidden)


def test_what_needs_an_extra_says_so_in_a_sentence(tmp_path: Path) -> None:
    commands = [[name, *words] for name, words in COMMANDS.items()]
    helps = [[name, "--help"] for name in COMMANDS]
    shown = run(EXTRAS + ENGINES, *commands, *helps, home=tmp_path)
    for words, (code, _, stderr, failure) in zip(commands, shown, strict=False):
        assert (code, failure) == (1, None), (words, stderr)
        assert "not installed" in stderr, words
        assert "pip install" in stderr, words
        assert "Traceback" not in stderr
    assert {code for code, *_ in shown[len(commands) :]} == {0}
