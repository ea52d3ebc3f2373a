"""Help, completion, and what is said about a mistyped word."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from typer.models import CommandInfo
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.cli import app as cli


def run(*args: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli.build_app(), [str(arg) for arg in args], input=stdin, prog_name="dasheng-edge")


def test_version_and_help() -> None:
    assert run("--version").stdout.startswith("dasheng-edge ")
    result = run("--help")
    assert result.exit_code == 0
    for command in ("caption", "verify", "info", "doctor"):
        assert command in result.stdout
        assert run(command, "--help").exit_code == 0
    assert run().exit_code == 2
    assert run("surprise").exit_code == 2


@pytest.mark.parametrize(
    "args", [("surprise",), ("caption", "b", "a", "--hop", "1"), ("caption", "b", "a", "--batch", "x")]
)
def test_what_is_wrong_is_broken_between_words(args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run(*args).stderr.rpartition("Error: ")[2]
    monkeypatch.setattr(cli, "fitted", lambda line, _: line.replace(" ", "\n").replace("Error:\n", "Error: "))
    assert run(*args).stderr.rpartition("Error: ")[2] == plain.replace(" ", "\n")


@pytest.mark.parametrize("command", cli.build_app().registered_commands, ids=lambda each: each.callback.__name__)
def test_help_pages_say_what_the_docstrings_say(command: CommandInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    assert command.callback is not None
    shown = run(command.name or command.callback.__name__, "--help").stdout
    text, _, _ = re.split(r"^(Arguments|Options):$", shown, maxsplit=1, flags=re.MULTILINE)
    lines = [line.strip() for line in text.splitlines()]
    said = (command.callback.__doc__ or "").split()
    assert text.split()[-len(said) :] == said  # no bracket was taken for markup
    for line, following in pairwise(lines):  # no paragraph is broken but where the terminal ends
        assert not line or not following or len(f"{line} {following.split()[0]}") > 70 - 2


OPTION_NAME = re.compile(r"^ +(?:-h, )?(--[a-z0-9-]+)", re.MULTILINE)


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("command", cli.build_app().registered_commands, ids=lambda each: each.callback.__name__)
def test_help_fits_the_terminal_and_cuts_no_name(command: CommandInfo, columns: int) -> None:
    assert command.callback is not None
    name = command.callback.__name__
    shown, same = (
        CliRunner().invoke(cli.build_app(), [name, option], terminal_width=columns).stdout
        for option in ("-h", "--help")
    )
    assert shown == same
    assert max(map(len, shown.splitlines())) <= columns
    click_command = typer.main.get_command(cli.build_app())
    options = {
        option
        for param in click_command.commands[name].params  # type: ignore[attr-defined]  # a group has commands
        for option in param.opts
        if option.startswith("--")
    }
    assert set(OPTION_NAME.findall(shown.partition("Options:")[2])) == options | {"--help"}
    assert "bool" not in shown  # a switch takes no value, so it has no type
    assert not {"x>=", "<=x", "x<="} & {*re.split(r"[\d.\[\]; ]+", shown)}  # limits are words


def test_the_list_of_commands_is_not_cut() -> None:
    shown = run("-h").stdout
    assert "..." not in shown.replace("[ARGS]...", "")
    assert max(map(len, shown.splitlines())) <= 80


def test_a_mistyped_command_and_its_neighbour() -> None:
    assert "'caption'" in run("captoin").stderr


@pytest.mark.parametrize(
    ("words", "offered"),
    [("dasheng-edge ca", {"caption"}), ("dasheng-edge quantize b --decoder Q4", {"Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0"})],
)
def test_shells_are_told_how_to_go_on(words: str, offered: set[str]) -> None:
    environment = {
        **os.environ, "_DASHENG_EDGE_COMPLETE": "complete_bash", "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }  # fmt: skip
    command = [sys.executable, "-c", "from dasheng_edge.runtime.cli.app import main; main()"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, text=True)
    assert set(done.stdout.split()) == offered


@pytest.mark.parametrize(
    ("shell", "offered"),
    [
        ("zsh", '"caption":"Caption audio'),
        ("fish", "caption\tCaption audio"),
        ("powershell", "caption:::Caption audio"),
    ],
)
def test_other_shells_are_told_in_their_own_way(shell: str, offered: str) -> None:
    environment = {
        "_DASHENG_EDGE_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "dasheng-edge ca",
        "_TYPER_COMPLETE_WORD_TO_COMPLETE": "ca", "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    done = CliRunner().invoke(cli.build_app(), [], env=environment, prog_name="dasheng-edge")
    assert offered in done.stdout


PRESS_TAB = """
dasheng-edge() { "$PYTHON" -c 'from dasheng_edge.runtime.cli.app import main; main()' "$@"; }
env() { local -x "${@:1:3}"; shift 3; "$@"; }  # the program above is a function, which env does not find
source <(_DASHENG_EDGE_COMPLETE=source_bash dasheng-edge)
complete -p dasheng-edge
for line in "dasheng-edge ca" "dasheng-edge caption --device c" "dasheng-edge info st" "dasheng-edge config set thr" \
            "dasheng-edge caption x.wa" "dasheng-edge caption b x.wav --max-n"; do
  read -ra COMP_WORDS <<< "$line"
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  COMPREPLY=()
  _dasheng_edge_completion dasheng-edge
  echo "${COMPREPLY[*]}"
done
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="asks bash")
def test_bash_completes_commands_options_names_and_leaves_files_to_itself(tmp_path: Path) -> None:
    bundles = tmp_path / "data" / "dasheng-edge" / "bundles"
    (bundles / "stored").mkdir(parents=True)
    (bundles / "stored" / "manifest.json").touch()
    (bundles / "stored" / "encoder.onnx").touch()
    (tmp_path / "stream").mkdir()
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data"), "PYTHON": sys.executable}
    bash = ["bash", "--norc", "-c", PRESS_TAB]
    done = subprocess.run(bash, cwd=tmp_path, env=environment, capture_output=True, check=False, text=True)
    assert done.stderr == ""
    rule, *answers = done.stdout.splitlines()
    assert "-o default" in rule  # where nothing is offered, bash completes files
    assert [set(answer.split()) for answer in answers] == [
        {"caption"}, {"cpu", "cuda"}, {"stored", "stream/"}, {"threads"}, set(), {"--max-new-tokens"},
    ]  # fmt: skip
