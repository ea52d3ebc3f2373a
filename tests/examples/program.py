"""The example's program and its inputs: building, running, wav files of every kind."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sysconfig
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.fixtures.places import MICRO, REPOSITORY

EXAMPLE = REPOSITORY / "examples" / "cpp"
PACKAGES = Path(sysconfig.get_path("platlib"))
CLIPS = sorted((REPOSITORY / "benchmarks" / "micro" / "clips").glob("*.flac"))
LIMIT_S = 300.0
RATE_HZ = 16_000
REPORT = re.compile("Sanitizer|runtime error")

needs_micro = pytest.mark.skipif(not MICRO.is_dir(), reason="there is no build/micro; make build/micro")


def headers() -> Path:
    """ONNX Runtime's, as named by ONNXRUNTIME_INCLUDE or left by `make example-cpp`."""
    named, fetched = os.environ.get("ONNXRUNTIME_INCLUDE"), REPOSITORY / "build" / "example-cpp" / "onnxruntime"
    for folder in (Path(named) if named else fetched, Path("/usr/include/onnxruntime")):
        if (folder / "onnxruntime_c_api.h").is_file():
            return folder
    pytest.skip(
        "there are no headers of ONNX Runtime; `make example-cpp` fetches them, or name them in ONNXRUNTIME_INCLUDE"
    )


def built(folder: Path, *options: str) -> Path:
    """The program, built in a folder; skips where something is missing."""
    if lacking := [tool for tool in ("cmake", "c++") if not shutil.which(tool)]:
        pytest.skip(f"building the example needs {' and '.join(lacking)}")
    if not list((PACKAGES / "onnxruntime" / "capi").glob("libonnxruntime.so*")) or not (PACKAGES / "include").is_dir():
        pytest.skip("the wheels of onnxruntime or llama-cpp-python have no libraries and headers that C++ can use")
    roots = (
        f"-DONNXRUNTIME_ROOT={PACKAGES / 'onnxruntime'}",
        f"-DLLAMA_ROOT={PACKAGES}",
        f"-DONNXRUNTIME_INCLUDE={headers()}",
    )
    run("cmake", "-S", str(EXAMPLE), "-B", str(folder), *roots, *options, limit_s=300)
    log = run("cmake", "--build", str(folder), "--parallel", "2", limit_s=900)
    assert "warning" not in log
    return folder / "dasheng-caption"


def run(*command: str, limit_s: float = LIMIT_S) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def ended(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # A sanitizer's dlopen does not search the folders that the library names.
    environment = os.environ | {"LD_LIBRARY_PATH": str(PACKAGES / "onnxruntime" / "capi")}
    command = [str(program), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=environment, timeout=LIMIT_S, check=False
    )


def refused(program: Path, *arguments: str) -> str:
    """The sentence with which the program ends with status 1; a sanitizer's report is none."""
    done = ended(program, *arguments)
    assert done.returncode == 1, (arguments, done.stderr)
    assert re.fullmatch(r"dasheng-caption: [ -~]+\n", done.stderr), (arguments, done.stderr)
    return done.stderr


def decoded(clip: Path) -> NDArray[np.int16]:
    with av.open(str(clip)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)]).astype(np.int16)


def write_wav(path: Path, samples: NDArray[np.int16]) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def riff(fmt: bytes, data: bytes) -> bytes:
    chunks = b"JUNK" + struct.pack("<I", 3) + b"odd\0" + b"fmt " + struct.pack("<I", len(fmt)) + fmt
    chunks += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def wav_bytes(waveform: NDArray[np.float64], rate_hz: int, kind: str, *, extensible: bool = False) -> bytes:
    """[frames, channels] as a wav file of a kind: u8, i16, i24, i32, f32, f64."""
    bits = int(kind[1:])
    if kind[0] == "f":
        data = waveform.astype(f"<f{bits // 8}").tobytes()
    elif kind == "u8":
        data = np.clip(np.round(waveform * 128) + 128, 0, 255).astype(np.uint8).tobytes()
    else:
        whole = np.clip(np.round(waveform * 2.0 ** (bits - 1)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype("<i4")
        data = whole.reshape(-1, 1).view(np.uint8)[:, : bits // 8].tobytes()
    tag, channels = (3 if kind[0] == "f" else 1), waveform.shape[1]
    width = channels * bits // 8
    fmt = struct.pack("<HHIIHH", 0xFFFE if extensible else tag, channels, rate_hz, rate_hz * width, width, bits)
    if extensible:
        fmt += struct.pack("<HHIH", 22, bits, 0, tag) + bytes.fromhex("000000001000800000aa00389b71")
    return riff(fmt, data)
