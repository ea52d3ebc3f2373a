"""The example is built once for all tests, plain and with sanitizers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.fixtures.places import MICRO

from .program import CLIPS, built, decoded, run, write_wav


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("cpp"))


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("sanitized"), "-DDASHENG_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """micro in int8 and Q4_K_M."""
    return quantized(tmp_path_factory.mktemp("quantized") / "small", "--recipe", "small")


@pytest.fixture(scope="session")
def fewer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """micro with 512 of its 768 tokens."""
    return quantized(tmp_path_factory.mktemp("quantized") / "fewer", "--vocab", "512")


def quantized(out: Path, *options: str) -> Path:
    run(sys.executable, "-m", "dasheng_edge", "quantize", str(MICRO), *options, "--out", str(out), limit_s=300)
    return out


@pytest.fixture(scope="session")
def wavs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All clips of micro, as 16-bit wav."""
    folder = tmp_path_factory.mktemp("wavs")
    return [write_wav(folder / f"{clip.stem}.wav", decoded(clip)) for clip in CLIPS]
