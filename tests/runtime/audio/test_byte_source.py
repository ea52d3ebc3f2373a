"""Pipes, devices, and file objects that do not do what file objects do."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.runtime.audio import byte_source
from dasheng_edge.runtime.audio.read import read_audio
from dasheng_edge.runtime.errors import AudioDecodeError, AudioEmptyError, AudioError
from tests.fixtures.audio_files import Format, sine, write_audio

RATE = 16_000
WAV = Format("wav", "wav", "pcm_s16le", RATE, lossless=True)
pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")


def fed(pipe: Path, data: bytes, after_s: float) -> threading.Thread:
    def write() -> None:
        time.sleep(after_s)
        with pipe.open("wb") as file:
            file.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


@pytest.mark.parametrize("after_s", [0.0, 0.3])
def test_a_named_pipe_is_waited_for_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, after_s: float
) -> None:
    monkeypatch.setattr(byte_source, "WAIT_S", 0.1)
    data = write_audio(tmp_path / "a.wav", sine(440, 1, RATE), WAV).read_bytes()
    os.mkfifo(tmp_path / "pipe")
    writer = fed(tmp_path / "pipe", data, after_s)
    assert len(np.concatenate(list(read_audio(tmp_path / "pipe")))) == RATE
    writer.join()
    if after_s:
        assert f"waiting for audio from {tmp_path / 'pipe'}" in capsys.readouterr().err


def test_a_terminal_is_waited_for_and_that_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_source, "WAIT_S", 0.05)
    there, here = os.openpty()
    with os.fdopen(there, "wb", buffering=0) as keyboard, os.fdopen(here, "rb", buffering=0) as terminal:
        threading.Timer(0.3, keyboard.write, [b"\n"]).start()
        byte_source.wait_for(terminal, "<stdin>")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "waiting for audio from <stdin>, which is a terminal; end with Ctrl-C\n"


def test_a_named_pipe_that_is_closed_again_is_empty(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = fed(tmp_path / "pipe", b"", 0.0)
    with pytest.raises(AudioEmptyError):
        list(read_audio(tmp_path / "pipe"))
    writer.join()


def test_waiting_ends_with_ctrl_c(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    code = "import sys; from dasheng_edge.runtime.audio.read import read_audio; next(read_audio(sys.argv[1]))"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "pipe")], stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stderr is not None
        assert "waiting for audio" in child.stderr.readline()
        child.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in child.communicate(timeout=10)[1]


class Strange(io.BytesIO):
    """Gives `answer` to whoever reads."""

    def __init__(self, answer: object, *, seekable: bool) -> None:
        super().__init__(b"RIFF" + bytes(9999))
        self._answer, self._seekable = answer, seekable

    def seekable(self) -> bool:
        return self._seekable

    def read(self, size: int | None = -1) -> bytes:
        if isinstance(self._answer, Exception) and size:
            raise self._answer
        return self._answer if size else b""  # type: ignore[return-value]


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize(
    "answer", [None, "text", 5, bytes(1 << 20), OSError(5, "Input/output error"), RuntimeError("x"), ValueError("y")]
)
def test_a_file_object_that_misbehaves_is_an_audio_error(answer: object, *, seekable: bool) -> None:
    with pytest.raises(AudioError):
        list(read_audio(Strange(answer, seekable=seekable)))


@pytest.mark.parametrize("name", ["a" * 300, "/proc/cpuinfo", "/proc/self/mem", "/dev/null", "a\0b", "\ud800"])
def test_names_of_what_is_no_audio_file(name: str) -> None:
    with pytest.raises(AudioError):
        list(read_audio(name))


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/urandom", "/dev/full", "/proc/self/environ", "/proc/self/maps"])
def test_what_states_no_size_is_read_before_it_is_called_empty(name: str) -> None:
    if not os.access(name, os.R_OK):
        pytest.skip("not here")
    with pytest.raises(AudioDecodeError, match="is not audio that FFmpeg can read"):
        next(read_audio(name))
