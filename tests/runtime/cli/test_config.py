"""`dasheng-edge config`, and what its settings and the default bundle do to the other commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.cli import app as cli
from dasheng_edge.runtime.cli import config as module
from dasheng_edge.runtime.config import default_bundle
from dasheng_edge.runtime.config.settings import KEYS
from tests.fixtures.audio_files import Format, sine, write_audio


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli.build_app(), [str(arg) for arg in args], prog_name="dasheng-edge")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("DASHENG_EDGE_CONFIG", str(path))
    return path


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of bundles."""
    for place in (default_bundle, module):
        monkeypatch.setattr(place, "bundles_folder", lambda: tmp_path / "bundles")
    return tmp_path / "bundles"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_audio(tmp_path / "clip.wav", sine(440, 1, 16_000), Format("wav", "wav", "pcm_s16le", 16_000))


def test_set_list_and_unset(file: Path, stored: Path, tiny_bundle: Path) -> None:
    assert run("config", "path").stdout == f"{file}\n"
    assert run("config", "set", "threads", "1").exit_code == 0
    assert run("config", "set", "bundle", tiny_bundle).exit_code == 0
    assert file.read_text("utf-8") == f'threads = 1\nbundle = "{tiny_bundle}"\n'
    listed = json.loads(run("config", "--json").stdout)
    assert (listed["file"], listed["bundles_folder"]) == (str(file), str(stored))
    assert listed["settings"] == dict.fromkeys(KEYS) | {
        "threads": {"value": 1, "origin": f"{file}, line 1"},
        "bundle": {"value": str(tiny_bundle), "origin": f"{file}, line 2"},
    }
    assert all(key in run("config").stdout for key in KEYS)
    assert run("config", "unset", "threads").exit_code == 0
    assert file.read_text("utf-8") == f'bundle = "{tiny_bundle}"\n'


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("set",), 2, "dasheng-edge config set KEY VALUE"),
        (("set", "threads"), 2, "dasheng-edge config set KEY VALUE"),
        (("unset",), 2, "dasheng-edge config unset KEY"),
        (("path", "threads"), 2, "path takes no more words"),
        (("frob",), 2, "'set'"),
        (("set", "thread", "1"), 1, "did you mean threads?"),
        (("unset", "thread"), 1, "did you mean threads?"),
        (("set", "threads", "0"), 1, "error: threads: "),
        (("set", "threads", "x"), 1, "threads: got 'x', expected a whole number"),
        (("set", "strict", "1"), 1, "expected true or false"),
        (("set", "format", "srx"), 1, "format: 'srx' is not known"),
        (("set", "device", "gpu"), 1, "device: 'gpu' is not known"),
        (("set", "bundle", "nowhere"), 1, "nowhere is no bundle"),
    ],
)
def test_wrong_words(file: Path, words: tuple[str, ...], code: int, said: str) -> None:
    result = run("config", *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in " ".join(result.stderr.split())
    assert code == 2 or result.stderr.count("\n") == 1
    assert not file.exists()


def test_every_setting_is_an_option_of_a_command_with_a_bundle() -> None:
    commands: Any = typer.main.get_command(cli.build_app())
    reached = {key for command in commands.commands.values() for key in module._params(command)}
    assert reached | {"bundle"} == {*KEYS}
    for command in ("export", "pull", "doctor", "config"):
        if command in commands.commands:
            assert module._params(commands.commands[command]) == {}
    assert not {"window", "hop"} & module._params(commands.commands["listen"]).keys()  # are others there


def opened_with(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int | None]]:
    """Bundles and threads of the captioners that are opened, which is where the commands end."""
    told: list[tuple[Path, int | None]] = []

    def refuse(bundle: Path, **given: Any) -> None:
        told.append((bundle, given["options"].encoder_threads))
        raise typer.Exit(3)

    monkeypatch.setattr(Captioner, "open", refuse)
    return told


def test_the_command_line_beats_the_environment_beats_the_file(
    file: Path, tiny_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(f"threads = 2\nbundle = '{tiny_bundle}'\n", "utf-8")
    told = opened_with(monkeypatch)
    assert run("caption", clip).exit_code == 3
    monkeypatch.setenv("DASHENG_EDGE_THREADS", "1")
    run("caption", clip)
    run("caption", "--threads", "2", clip)
    other = Path(shutil.copytree(tiny_bundle, file.parent / "other"))
    monkeypatch.setenv("DASHENG_EDGE_BUNDLE", str(other))
    run("caption", clip)
    run("caption", tiny_bundle, clip)
    assert told == [(tiny_bundle, 2), (tiny_bundle, 1), (tiny_bundle, 2), (other, 1), (tiny_bundle, 1)]


@pytest.mark.parametrize(
    "options", [("--stream",), ("--live",), ("--json",), ("--window", "3"), ("--hop", "7"), ("--batch", "1")]
)
def test_an_option_that_was_typed_beats_settings_that_it_makes_no_sense_with(
    file: Path, tiny_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    file.write_text("window = 8\nhop = 6\nbatch = 4\nformat = 'text'\n", "utf-8")
    opened_with(monkeypatch)
    assert run("caption", tiny_bundle, clip, *options).exit_code == 3


def test_a_wrong_setting_costs_one_line_that_names_it(file: Path, tiny_bundle: Path, clip: Path) -> None:
    for text in ("threads = 0", "threads = 'x'", "threads ="):
        file.write_text(f"\n{text}\n", "utf-8")
        for words in (("caption", tiny_bundle, clip), ("verify", tiny_bundle), ("config",)):
            result = run(*words)
            assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
            assert f"{file}, line 2: " in result.stderr
            assert "threads" in result.stderr
    assert run("caption", "--help").exit_code == run("--help").exit_code == run("config", "path").exit_code == 0
    assert run("doctor").exit_code == 0
    assert f"{file}, line 2" in run().stdout


def test_a_typed_option_is_blamed_for_itself(file: Path, tiny_bundle: Path, clip: Path) -> None:
    file.write_text("threads = 2\n", "utf-8")
    result = run("caption", tiny_bundle, clip, "--threads", "0")
    assert result.exit_code == 2
    assert str(file) not in result.stderr


@pytest.mark.parametrize("words", [("info",), ("info", "--json"), ("verify", "--threads", "1")])
def test_commands_without_audio_take_the_default(stored: Path, tiny_bundle: Path, words: tuple[str, ...]) -> None:
    missing = run(*words)
    assert (missing.exit_code, missing.stderr.count("\n")) == (1, 1)
    assert "dasheng-edge export" in missing.stderr
    shutil.copytree(tiny_bundle, stored / "tiny")
    done = run(*words)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1:] == run(words[0], "tiny", *words[1:]).stdout.splitlines()[-1:]


def test_audio_without_a_bundle(stored: Path, tiny_bundle: Path, clip: Path, tmp_path: Path) -> None:
    named = run("caption", tiny_bundle, clip, "--threads", "1", "--max-new-tokens", "4")
    assert (named.exit_code, run("caption", clip).exit_code) == (0, 1)
    shutil.copytree(tiny_bundle, stored / "tiny")
    for words in (("--threads", "1", clip), (clip, "--threads", "1"), ("--threads", "1", "--", clip), ("tiny", clip)):
        assert run("caption", "--max-new-tokens", "4", *words).stdout == named.stdout
    out = tmp_path / "out.npz"
    assert run("embed", clip, "--out", out).exit_code == 0
    assert run("bench", "--rounds", "1", "--max-new-tokens", "2", clip, "--json").exit_code == 0
    assert run("caption").exit_code == 2  # there is nothing to caption


def test_stored_bundles_have_names_everywhere(stored: Path, tiny_bundle: Path) -> None:
    shutil.copytree(tiny_bundle, stored / "tiny")
    assert run("doctor", "tiny").exit_code == 0
    assert run("tune", "tiny", "tiny", "--forget", "--json").exit_code == 1  # nothing is kept by tests
    commands: Any = typer.main.get_command(cli.build_app())
    for command in commands.commands.values():
        for param in command.params:
            if param.param_type_name == "argument" and (param.metavar or "").endswith(("BUNDLE", "REFERENCE")):
                value = ["tiny"] if param.nargs == -1 else "tiny"
                taken = param.process_value(typer.Context(command), value)
                assert (taken[0] if param.nargs == -1 else taken) == stored / "tiny"


def test_a_mistyped_bundle_is_no_audio(stored: Path, tiny_bundle: Path, clip: Path) -> None:
    for default in (False, True):
        if default:
            shutil.copytree(tiny_bundle, stored / "tiny")
        result = run("caption", "tyni", clip)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error: cannot open bundle tyni")


def test_the_first_steps(stored: Path, tiny_bundle: Path, file: Path) -> None:
    def steps() -> str:
        result = run()
        assert (result.exit_code, result.stderr) == (2, "")
        assert "dasheng-edge caption" in result.stdout
        assert "dasheng-edge doctor" in result.stdout
        return result.stdout

    assert "dasheng-edge pull" in steps()
    assert f"--out {stored}" in steps()
    shutil.copytree(tiny_bundle, stored / "tiny")
    assert f"Your bundle is {stored / 'tiny'}" in steps()
    shutil.copytree(tiny_bundle, stored / "two words")
    assert "dasheng-edge config set bundle 'two words'" in steps()
    assert run("config", "set", "bundle", "two words").exit_code == 0
    assert f"Your bundle is {stored / 'two words'} ({file}, line 1)" in steps()
    shutil.rmtree(stored / "two words")
    assert f"Mend your settings: {file}, line 1: there is no bundle" in steps()


SET = """
device = 'cpu'
allow_tf32 = true
threads = 1
low_memory = true
prompt = 'what?'
system = ''
max_new_tokens = 9
temperature = 0.5
format = '{formats}'
style = 'plain'
window = 8
hop = 4
batch = 2
strict = true
"""
# Of options that take no number from 1 on and no path.
TYPED = {
    "--format": "jsonl", "--style": "sdh", "--watch": ".", "--device": "cpu", "--ask": "x=y", "--speech": "en",
    "--top-p": "0.5", "--min-p": "0.5", "--track": "en", "--window": "6", "--from-file": "list",
}  # fmt: skip


@pytest.mark.parametrize("formats", ["txt", "srt,vtt"])
def test_no_option_that_was_typed_fails_for_a_setting(
    file: Path, tiny_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, formats: str
) -> None:
    assert {line.split()[0] for line in SET.splitlines() if line} == {*KEYS} - {"bundle"}
    monkeypatch.chdir(file.parent)
    Path("list").write_text(str(clip), "utf-8")
    opened_with(monkeypatch)
    commands: Any = typer.main.get_command(cli.build_app())
    tried = []

    def code(words: list[str], text: str) -> int:
        file.write_text(text, "utf-8")
        with commands.make_context("dasheng-edge", ["caption", str(tiny_bundle), str(clip), *words]) as ctx:
            try:
                commands.invoke(ctx)
            except (typer.Exit, cli._UsageError) as error:
                return int(getattr(error, "exit_code", 1))
        return 0

    for param in commands.commands["caption"].params:
        for option in (*param.opts, *param.secondary_opts) if param.param_type_name == "option" else ():
            for value in ("new", "new.jsonl") if option == "--out" else (TYPED.get(option, "1"),):
                words = [option] if param.is_flag else [option, value]
                if code(words, "") == 3:
                    assert (words, code(words, SET.format(formats=formats))) == (words, 3)
                    tried.append(words)
    assert len(tried) > 20
