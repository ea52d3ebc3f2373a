"""The command line, in process: what goes to stdout, what to stderr, and the exit code."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import typer
from typer.models import CommandInfo
from typer.testing import CliRunner, Result

from dasheng_edge.runtime.bundle.bundle import GOLDEN, Bundle, sha256_of
from dasheng_edge.runtime.bundle.manifest import MANIFEST, FileFacts
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.cli import app as cli
from dasheng_edge.runtime.cli import options as cli_parts
from dasheng_edge.runtime.cli.doctor import examine
from dasheng_edge.runtime.errors import DecoderError, DeviceError, MissingExtraError
from dasheng_edge.runtime.request import RunningRequest
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.verify import Seam, VerifyReport
from tests.fixtures.audio_files import Format, sine, write_audio

WAV = Format("wav", "wav", "pcm_s16le", 16_000)


def run(*args: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli.build_app(), [str(arg) for arg in args], input=stdin, prog_name="dasheng-edge")


def caption(*args: str | Path, stdin: bytes | None = None) -> Result:
    return run("caption", *args, "--threads", "1", "--max-new-tokens", "6", stdin=stdin)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_audio(tmp_path / "clip.wav", sine(440, 1, 16_000), WAV)


@pytest.fixture
def text(captioner: Captioner, clip: Path) -> str:
    return captioner.caption(clip, max_new_tokens=6).text


def test_one_file_prints_the_caption_alone(tiny_bundle: Path, clip: Path, text: str) -> None:
    result = caption(tiny_bundle, clip)
    assert (result.exit_code, result.stdout, result.stderr) == (0, text + "\n", "")
    assert caption(tiny_bundle, clip, "--stream").stdout == text + "\n"


def test_stdin(tiny_bundle: Path, clip: Path, text: str) -> None:
    assert caption(tiny_bundle, "-", stdin=clip.read_bytes()).stdout == text + "\n"
    empty = caption(tiny_bundle, "-", stdin=b"")
    assert (empty.exit_code, empty.stdout) == (1, "")
    assert "is empty" in empty.stderr


@pytest.mark.parametrize("stream", [False, True])
def test_good_files_are_captioned_beside_bad_ones(
    tiny_bundle: Path, clip: Path, tmp_path: Path, text: str, *, stream: bool
) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("hello world\n" * 99)
    files = [tmp_path / "none.wav", clip, tmp_path / "empty.wav", tmp_path, tmp_path / "text.wav", clip]
    result = caption(tiny_bundle, *files, *(["--stream"] if stream else []))
    assert result.exit_code == 1
    line = f"{clip}: {text if stream else ' '.join(text.split())}\n"
    assert result.stdout == 2 * line
    errors = result.stderr.splitlines()
    assert len(errors) == 4
    for error, path in zip(errors, [files[0], files[2], files[3], files[4]], strict=True):
        assert error.startswith("error: ")
        assert str(path) in error


def test_json_lines(tiny_bundle: Path, clip: Path, tmp_path: Path, text: str) -> None:
    result = caption(tiny_bundle, clip, tmp_path / "none.wav", "--json")
    assert result.exit_code == 1
    good, bad = map(json.loads, result.stdout.splitlines())
    assert (good["audio"], good["text"], good["finish_reason"], good["audio_s"]) == (str(clip), text, "length", 1.0)
    assert good["timings"]["total_ms"] > 0
    assert bad == {
        "audio": str(tmp_path / "none.wav"),
        "error": f"{tmp_path / 'none.wav'} does not exist; expected an audio file",
        "error_type": "AudioNotFoundError",
    }


def test_options_reach_the_model(tiny_bundle: Path, clip: Path, captioner: Captioner) -> None:
    want = captioner.caption(clip, "Why?", system="Be brief.", max_new_tokens=6)
    result = caption(tiny_bundle, clip, "--prompt", "Why?", "--system", "Be brief.", "--json")
    assert tuple(json.loads(result.stdout)["tokens"]) == want.tokens
    hot = [json.loads(caption(tiny_bundle, clip, "--json", "--temperature", "2", "--seed", s).stdout) for s in "112"]
    assert hot[0]["tokens"] == hot[1]["tokens"] != hot[2]["tokens"]


def test_warnings_go_to_stderr(tiny_bundle: Path, clip: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunningRequest, "_warnings", lambda *_: ("it is long",))
    result = caption(tiny_bundle, clip)
    assert (result.exit_code, result.stdout) == (0, text + "\n")
    assert result.stderr == f"warning: {clip}: it is long\n"


@pytest.mark.parametrize("error", [DecoderError("llama.cpp failed"), DeviceError("out of memory")])
def test_a_part_that_fails_costs_one_file(
    tiny_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def prefill(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Decoder, "prefill", prefill)
    result = caption(tiny_bundle, clip, clip)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == 2 * f"error: {error}\n"


def test_an_interrupted_stream_ends_its_line(tiny_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(self: Decoder, *_: object) -> object:
        yield from self.tokenize("a b")
        raise KeyboardInterrupt

    monkeypatch.setattr(Decoder, "generate", generate)
    result = caption(tiny_bundle, clip, "--stream")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "a b\n", "interrupted\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--stream", "--json"], "choose one"),
        (["-", "-"], "only once"),
        (["--max-new-tokens", "0"], "max-new-tokens"),
        (["--threads", "0"], "threads"),
        (["--device", "tpu"], "device"),
        (["--top-p", "2"], "top-p"),
        (["--temperature", "hot"], "temperature"),
        (["--surprise"], "surprise"),
    ],
)
def test_wrong_usage(tmp_path: Path, args: list[str], message: str) -> None:
    result = run("caption", tmp_path, "x.wav", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.parametrize(("option", "value"), [("--top-p", "0"), ("--repetition-penalty", "0")])
def test_sampling_options_are_checked(tiny_bundle: Path, clip: Path, option: str, value: str) -> None:
    result = caption(tiny_bundle, clip, option, value)
    assert result.exit_code == 2
    assert option in result.stderr
    assert "greater than 0" in result.stderr


def test_errors_are_one_line(tmp_path: Path) -> None:
    none = str(tmp_path / "none")
    for command in (["caption", none, "x.wav"], ["verify", str(tmp_path)], ["info", none]):
        result = run(*command)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error: cannot open bundle")
        assert result.stderr.count("\n") == 1


def test_verify(tiny_bundle: Path) -> None:
    result = run("verify", tiny_bundle, "--threads", "1")
    assert (result.exit_code, result.stderr) == (0, "")
    for seam in ("log-mel", "patches", "embeddings", "prompt", "first logits", "greedy tokens"):
        assert seam in result.stdout
    machine = json.loads(run("verify", tiny_bundle, "--threads", "1", "--json").stdout)
    assert machine["ok"] is True
    assert {seam["name"] for seam in machine["seams"]} >= {"log-mel", "prompt"}


@pytest.mark.parametrize("value", [9.0, np.nan])
def test_verify_fails(bundle_copy: Path, value: float) -> None:
    bundle = Bundle.open(bundle_copy)
    path = bundle.path(GOLDEN)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["patches_0"][0, 0] += value
    np.savez(path, **arrays)
    facts = FileFacts(bytes=path.stat().st_size, sha256=sha256_of(path))
    manifest = bundle.manifest.model_copy(update={"files": {**bundle.manifest.files, GOLDEN: facts}})
    (bundle_copy / MANIFEST).write_text(manifest.model_dump_json())
    result = run("verify", bundle_copy, "--threads", "1")
    assert result.exit_code == 1
    assert "NO" in result.stdout
    assert result.stderr.startswith("error: 1 of ")
    assert "first patches of" in result.stderr
    machine = run("verify", bundle_copy, "--threads", "1", "--json")
    assert machine.exit_code == 1
    (bad,) = [seam for seam in json.loads(machine.stdout)["seams"] if not seam["ok"]]
    assert (bad["error"] is None) == bool(np.isnan(value))


def test_info(tiny_bundle: Path) -> None:
    result = run("info", tiny_bundle)
    assert (result.exit_code, result.stderr) == (0, "")
    for text in ("midashenglm", "decoder.gguf", "precision: F32", "Write an audio caption", "total"):
        assert text in result.stdout
    machine = json.loads(run("info", tiny_bundle, "--json").stdout)
    assert machine == json.loads((tiny_bundle / MANIFEST).read_text())


def test_brackets_are_not_markup(bundle_copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((bundle_copy / MANIFEST).read_text())
    manifest["name"] = "[/x]"
    manifest["prompt"]["prompt"] = "Say [red]it[/y]"
    (bundle_copy / MANIFEST).write_text(json.dumps(manifest))
    folder = bundle_copy.rename(tmp_path / "[z]")
    shown = run("info", folder)
    assert shown.exit_code == 0
    assert "[/x] (midashenglm)" in shown.stdout
    assert "Say [red]it[/y]" in shown.stdout
    report = VerifyReport("[/x]", (Seam("[/clip]", "patches", 0.0, 1.0, "relative"),))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dasheng_edge.runtime.verify.verify_bundle", lambda *_, **__: report)
        verified = run("verify", folder)
    assert verified.exit_code == 0
    assert "verify [/x]" in verified.stdout
    assert "[/clip]" in verified.stdout


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "llama-cpp-python" in result.stdout
    machine = json.loads(run("doctor", "--json").stdout)
    assert machine["problems"] == []

    import dataclasses

    ill = dataclasses.replace(examine(), problems=("run this",), memory_gib=None)
    monkeypatch.setattr("dasheng_edge.runtime.cli.doctor.examine", lambda: ill)
    result = run("doctor")
    assert result.exit_code == 1
    assert "run this" in result.stdout


def test_version_and_help() -> None:
    assert run("--version").stdout.startswith("dasheng-edge ")
    result = run("--help")
    assert result.exit_code == 0
    for command in ("caption", "verify", "info", "doctor"):
        assert command in result.stdout
        assert run(command, "--help").exit_code == 0
    assert run().exit_code == 2
    assert run("surprise").exit_code == 2


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


def test_the_list_of_commands_is_not_cut() -> None:
    shown = run("-h").stdout
    assert "..." not in shown.replace("[ARGS]...", "")
    assert max(map(len, shown.splitlines())) <= 80


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


def test_audio_at_an_address_costs_one_file(tiny_bundle: Path, clip: Path) -> None:
    result = caption(tiny_bundle, "https://a.test/x.wav", clip)
    assert (result.exit_code, result.stdout.count("\n"), result.stderr.count("\n")) == (1, 1, 1)
    assert "https://a.test/x.wav is an address" in result.stderr


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


@pytest.mark.parametrize("arguments", [("info",), ("verify", "--threads", "1"), ("doctor",)])
def test_json_is_one_object_on_one_line(tiny_bundle: Path, arguments: tuple[str, ...]) -> None:
    result = run(*arguments, *([] if arguments == ("doctor",) else [tiny_bundle]), "--json")
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)
    assert isinstance(json.loads(result.stdout), dict)


def test_info_has_a_line_for_each_note(bundle_copy: Path) -> None:
    manifest = json.loads((bundle_copy / MANIFEST).read_text())
    manifest["prompt"] |= {"notes": ["system turn: none, as told", "sampling: greedy"], "special_tokens": {}}
    (bundle_copy / MANIFEST).write_text(json.dumps(manifest))
    shown = [line.strip("\u2502 ") for line in run("info", bundle_copy).stdout.splitlines()]
    assert "note: system turn: none, as told" in shown
    assert "note: sampling: greedy" in shown
    assert not any(line.startswith("special_tokens") for line in shown)
    (projector,) = [line for line in shown if line.startswith("projector ")]
    assert projector.endswith(f"parameters: {manifest['projector_parameters']:,}")


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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_command_like_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    number = signal.Signals[name]
    cleaned_up = []

    def command(prog_name: str) -> None:
        try:
            signal.raise_signal(number)
        finally:
            cleaned_up.append(prog_name)

    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(cli, "build_app", lambda: command)
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert stop.value.code == 128 + number
    assert cleaned_up == ["dasheng-edge"]


def test_a_closed_stdin_is_named(tiny_bundle: Path) -> None:
    program = f"import sys; sys.stdin = None; sys.argv = ['dasheng-edge', 'caption', {str(tiny_bundle)!r}, '-']"
    code = f"{program}; from dasheng_edge.runtime.cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert done.returncode == 2
    assert "stdin (-) is closed" in done.stderr


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


def test_the_device_that_is_chosen_is_said(tiny_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_parts, "choose_device", lambda: ("cpu", "there is no GPU"))
    result = caption(tiny_bundle, clip, "--device", "auto")
    assert (result.exit_code, result.stderr) == (0, "device: cpu (there is no GPU)\n")
    assert caption(tiny_bundle, clip, "--device", "cpu").stderr == ""


def test_a_device_that_auto_chose_and_that_fails_is_not_replaced(
    tiny_bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_parts, "choose_device", lambda: ("cuda", "it was there a moment ago"))
    result = caption(tiny_bundle, clip, "--device", "auto")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: device 'cuda' needs ONNX Runtime's CUDAExecutionProvider" in result.stderr
