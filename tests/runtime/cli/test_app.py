"""The command line, in process: what goes to stdout, what to stderr, and the exit code."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.cli import app as cli
from dasheng_edge.runtime.cli.doctor import examine
from dasheng_edge.runtime.errors import MissingExtraError
from tests.fixtures.audio_files import Format, sine, write_audio

WAV = Format("wav", "wav", "pcm_s16le", 16_000)


def run(*args: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli.build_app(), [str(arg) for arg in args], input=stdin, prog_name="dasheng-edge")


def caption(*args: str | Path, stdin: bytes | None = None) -> Result:
    return run("caption", *args, "--threads", "1", "--max-new-tokens", "6", stdin=stdin)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_audio(tmp_path / "clip.wav", sine(440, 1, 16_000), WAV)


@pytest.mark.parametrize("error", [MemoryError(), ImportError("libav.so: failed to map segment from shared object")])
def test_memory_that_a_library_lacks_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> None:
        raise error

    monkeypatch.setattr("typer.core.TyperGroup.invoke", short)
    result = run("info", "nothing")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: there is not enough memory (")


def test_errors_are_one_line(tmp_path: Path) -> None:
    none = str(tmp_path / "none")
    for command in (["caption", none, "x.wav"], ["verify", str(tmp_path)], ["info", none]):
        result = run(*command)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error: cannot open bundle")
        assert result.stderr.count("\n") == 1


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "llama-cpp-python" in result.stdout
    machine = json.loads(run("doctor", "--json").stdout)
    assert machine["problems"] == []

    import dataclasses

    ill = dataclasses.replace(examine(), problems=("run this",), memory_gib=None)
    monkeypatch.setattr("dasheng_edge.runtime.cli.doctor.examine", lambda _: ill)
    result = run("doctor")
    assert result.exit_code == 1
    assert "run this" in result.stdout


@pytest.mark.parametrize("value", ["true", "False", "on"])
def test_a_value_behind_a_switch_is_refused(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str
) -> None:
    result = run("caption", tiny_bundle, "--json", value)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"--json takes no value; leave {value!r} out" in result.stderr
    assert "--json takes no value" in run("info", tiny_bundle, "--json", value).stderr
    monkeypatch.chdir(tmp_path)
    (tmp_path / value).touch()  # but it may be a file
    assert "is empty" in caption(tiny_bundle, "--json", value).stderr


@pytest.mark.parametrize(
    "arguments",
    [("info",), ("caption", "x.wav"), ("quantize", "--encoder", "int8", "--out", "x"), ("tune",)],
)
def test_no_path_is_an_address(arguments: tuple[str, ...]) -> None:
    command, *rest = arguments
    result = run(command, "https://a.test/bundle", *rest)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "https://a.test/bundle is an address, and nothing is fetched from there" in " ".join(result.stderr.split())
    assert "is an address" in run("quantize", "x", "--encoder", "int8", "--out", "https://a.test/y").stderr


@pytest.mark.parametrize("arguments", [("info",), ("verify", "--threads", "1"), ("doctor",)])
def test_json_is_one_object_on_one_line(tiny_bundle: Path, arguments: tuple[str, ...]) -> None:
    result = run(*arguments, *([] if arguments == ("doctor",) else [tiny_bundle]), "--json")
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)
    assert isinstance(json.loads(result.stdout), dict)


def with_command(monkeypatch: pytest.MonkeyPatch, command: Callable[[], None]) -> None:
    """Pretend that another package brings a command."""
    module = ModuleType("extra_command")
    module.COMMANDS = (command,)  # type: ignore[attr-defined]
    module.__spec__ = ModuleSpec("extra_command", None)
    monkeypatch.setitem(sys.modules, "extra_command", module)
    monkeypatch.setattr(cli, "COMMAND_MODULES", ("extra_command", "dasheng_edge.not_there"))


def test_commands_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def extra() -> None:
        """Needs something."""
        raise MissingExtraError("run this")

    with_command(monkeypatch, extra)
    assert "extra" in run("--help").stdout
    result = run("extra")
    assert (result.exit_code, result.stderr) == (1, "error: run this\n")


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def extra() -> None:
        raise KeyboardInterrupt

    with_command(monkeypatch, extra)
    result = run("extra")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_the_command_like_an_error(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    number = signal.Signals[name]
    cleaned_up = []

    def extra() -> None:
        try:
            signal.raise_signal(number)
        finally:
            cleaned_up.append(name)

    with_command(monkeypatch, extra)
    monkeypatch.setattr(sys, "argv", ["dasheng-edge", "extra"])
    before = signal.signal(number, signal.default_int_handler)  # one that is ignored, as by nohup, stays so
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == code
        assert cleaned_up == [name]
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_a_closed_stdin_is_named(tiny_bundle: Path) -> None:
    program = f"import sys; sys.stdin = None; sys.argv = ['dasheng-edge', 'caption', {str(tiny_bundle)!r}, '-']"
    code = f"{program}; from dasheng_edge.runtime.cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert done.returncode == 2
    assert "stdin (-) is closed" in done.stderr


def test_a_missing_base_library_costs_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def extra() -> None:
        raise ModuleNotFoundError(name="av")

    with_command(monkeypatch, extra)
    result = run("extra")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("error: av is not installed")
    assert "pip install" in result.stderr


def test_wrong_usage_is_told_without_a_prefix_that_says_nothing(tiny_bundle: Path) -> None:
    result = run("bench", tiny_bundle, "--against", "transformers")
    assert result.exit_code == 2
    assert "\nError: --against transformers and --checkpoint" in result.stderr
    assert result.stderr.startswith("Usage: dasheng-edge bench")


def test_our_own_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def extra() -> None:
        raise ZeroDivisionError

    with_command(monkeypatch, extra)
    assert isinstance(run("extra").exception, ZeroDivisionError)


def test_the_program_itself(tmp_path: Path) -> None:
    script = (
        "import sys; from dasheng_edge.runtime.cli.app import main; sys.argv = ['dasheng-edge', *sys.argv[1:]]; main()"
    )
    command = [sys.executable, "-c", script, "info", str(tmp_path / "caf\udce9")]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: cannot open bundle ")
    assert done.stderr.count(b"\n") == 1


def program(*arguments: str | Path, redirect: str) -> subprocess.CompletedProcess[str]:
    """The program in a shell, its standard streams redirected."""
    command = shlex.join([sys.executable, "-m", "dasheng_edge", *map(str, arguments)])
    return subprocess.run(["sh", "-c", f"{command} {redirect}"], capture_output=True, check=False, text=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("caption", "-h"), ("info",), ("info", "--json")])
def test_a_full_disk_costs_one_line(tiny_bundle: Path, arguments: tuple[str, ...]) -> None:
    command = [*arguments, *([str(tiny_bundle)] if arguments[0] == "info" else [])]
    done = program(*command, redirect="> /dev/full")
    assert done.returncode == 1
    assert done.stderr == "error: cannot write results: No space left on device\n"
    assert program(*command, redirect="> /dev/full 2>&1").returncode == 1


def test_closed_streams(tiny_bundle: Path) -> None:
    done = program("info", tiny_bundle, redirect=">&-")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "stdout is closed" in done.stderr
    assert program("info", tiny_bundle, redirect="2>&- <&-").returncode == 0
    assert program("info", tiny_bundle.parent / "none", redirect="2>&-").returncode == 1


def test_a_reader_that_has_enough_ends_it_quietly(tiny_bundle: Path) -> None:
    done = program("info", tiny_bundle, redirect="| true")
    assert (done.stdout, done.stderr) == ("", "")


def test_a_closed_pipe_is_quiet() -> None:
    script = "from dasheng_edge.runtime.cli.app import main; import sys; sys.argv = ['dasheng-edge', '--help']; main()"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
