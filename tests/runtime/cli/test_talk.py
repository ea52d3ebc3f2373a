"""`dasheng-edge ask` and `dasheng-edge chat`."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from dasheng_edge.runtime import Captioner, ChatOptions, Engine, Message
from dasheng_edge.runtime.cli import app as cli
from dasheng_edge.runtime.cli.requests import talk
from dasheng_edge.runtime.names import printable
from tests.fixtures.audio_files import Format, sine, write_audio


def run(*args: str | Path, stdin: str | bytes | None = None) -> Result:
    arguments = [*(str(arg) for arg in args), "--max-new-tokens", "6", "--threads", "1"]
    return CliRunner().invoke(cli.build_app(), arguments, input=stdin, prog_name="dasheng-edge")


def wav(path: Path, hz: int, seconds: float = 1.0) -> Path:
    return write_audio(path, sine(hz, seconds, 16_000), Format("wav", "wav", "pcm_s16le", 16_000))


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    return [wav(tmp_path / "a b.wav", 440), wav(tmp_path / "c.wav", 900, 0.7)]


def wanted(captioner: Captioner, *messages: Message) -> str:
    return captioner.chat(messages, ChatOptions(6)).text


def shown(*answers: str) -> str:
    return "".join(printable(f"{answer}\n", keep="\n") for answer in answers)


def test_one_question_about_two_files(tiny_bundle: Path, clips: list[Path], captioner: Captioner) -> None:
    question = "Are the two speakers the same?"
    want = wanted(captioner, Message("user", [*clips, question]))
    audio = [word for clip in clips for word in ("--audio", clip)]
    result = run("ask", tiny_bundle, *audio, question)
    assert (result.exit_code, result.stdout) == (0, shown(want))
    assert "cut at 6 tokens" in result.stderr
    fields = json.loads(run("ask", tiny_bundle, *audio, question, "--json", "--system", "").stdout)
    assert fields["audio"] == [str(clip) for clip in clips]
    assert fields["text"] == want
    assert fields["finish_reason"] == "length"
    assert fields["audio_s"] == pytest.approx(1.7)
    assert fields["usage"]["completion_tokens"] == 6
    piped = run("ask", tiny_bundle, "--audio", "-", question, stdin=clips[0].read_bytes())
    assert piped.stdout == shown(wanted(captioner, Message("user", [clips[0], question])))


def test_the_form_of_an_answer(tiny_bundle: Path, clips: list[Path], tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["yes", "no"]}')
    result = run("ask", tiny_bundle, "--audio", clips[0], "Is it loud?", "--schema", schema)
    assert json.loads(result.stdout) in ("yes", "no")
    schema.write_text('{"type": "integer", "minimum": 0}')
    result = run("ask", tiny_bundle, "--audio", clips[0], "How loud?", "--schema", schema)
    assert result.exit_code == 1
    assert "'minimum', which is not supported" in result.stderr
    schema.write_text("{")
    assert run("ask", tiny_bundle, "--audio", clips[0], "How loud?", "--schema", schema).exit_code == 2


def test_the_bundle_may_be_left_out(tiny_bundle: Path, clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHENG_EDGE_BUNDLE", str(tiny_bundle))
    assert run("ask", "--audio", clips[0], "What is it?").exit_code == 0
    assert run("chat", stdin="What is it?\n").exit_code == 0
    assert run("ask", tiny_bundle, "--audio", clips[0], "What is it?").exit_code == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--audio", "nowhere.wav", "What?"], 1, "nowhere.wav does not exist"),
        (["What?"], 2, "--audio"),
        (["--audio", "-", "--audio", "-", "What?"], 2, "only once"),
        (["--audio", "nowhere.wav"], 2, "QUESTION"),
        (["--audio", "nowhere.wav", "What?", "--top-p", "0"], 2, "--top-p"),
    ],
)
def test_what_is_wrong_with_a_question(tiny_bundle: Path, words: list[str], code: int, message: str) -> None:
    result = run("ask", tiny_bundle, *words)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_each_line_is_a_turn(tiny_bundle: Path, clips: list[Path], captioner: Captioner) -> None:
    lines = [
        f"/audio {clips[0]}",
        "What is it?",
        "",
        "Why?",
        f'/audio "{clips[0]}"',
        f"/audio {clips[1]}",
        "",
        "/new",
        "Hm?",
    ]
    result = run("chat", tiny_bundle, stdin="\n".join(lines))
    assert result.exit_code == 0
    first = Message("user", [clips[0], "What is it?"])
    answers = [wanted(captioner, first)]
    history = [first, Message("assistant", answers[0]), Message("user", "Why?")]
    answers.append(wanted(captioner, *history))
    history += [Message("assistant", answers[1]), Message("user", [*clips, captioner.bundle.prompt_facts.prompt])]
    answers += [wanted(captioner, *history), wanted(captioner, Message("user", "Hm?"))]
    assert result.stdout == shown(*answers)
    assert result.stderr.count("for your next question") == 3


def test_what_fails_costs_a_sentence_and_the_talk_goes_on(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"nothing")
    lines = [
        "/audio nowhere.wav",
        f"/audio {tmp_path / 'bad.wav'}",
        "/audio",
        "/loud",
        "/help",
        "a" * 40_000,
        "Hm?",
        "/quit",
        "No",
    ]
    result = run("chat", tiny_bundle, "--audio", "gone.wav", stdin="\n".join(lines))
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for error, message in zip(
        errors, ("gone", "nowhere", "bad.wav", "needs a file", "no /loud", "begin a new one"), strict=True
    ):
        assert message in error
    assert len(result.stdout.splitlines()) == 1
    assert "/quit " in result.stderr


def test_ctrl_c_stops_an_answer_and_what_came_of_it_is_remembered(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []

    def echo(text: str = "", **_: Any) -> None:
        printed.append(text)
        if len(printed) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(typer, "echo", echo)
    monkeypatch.setattr(talk, "_at_terminal", lambda: True)
    with Engine.open(tiny_bundle) as engine:
        talked = talk.Talk(engine, ChatOptions(200), [], lambda _: None)
        lines = iter(["Talk.", "Go on."])
        assert talked.run(lambda: next(lines, None))
        assert [message.role for message in talked._messages] == ["user", "assistant"] * 2
        assert printable(str(talked._messages[1].content), keep="\n") == "".join(printed[:2])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a terminal of Linux")
def test_at_a_terminal(tiny_bundle: Path) -> None:
    main, side = pty.openpty()
    words = ["chat", tiny_bundle, "--threads", "1", "--max-new-tokens", "4"]
    with subprocess.Popen(
        [sys.executable, "-m", "dasheng_edge", *map(str, words)],
        stdin=side, stdout=side, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        seen = ""

        def until(text: str) -> None:
            nonlocal seen
            while text not in seen:
                seen += os.read(main, 1000).decode("utf-8", "replace")
            seen = seen.partition(text)[2]

        until("> ")
        os.write(main, b"What?\n")
        until("What?")
        until("> ")
        process.send_signal(2)
        time.sleep(0.1)
        until("> ")
        os.write(main, b"\x04")
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert b"Ctrl-D ends" in process.stderr.read()
    os.close(main)
    os.close(side)
