"""The example under sanitizers: good bundles, mutated ones, and what is told of files that are wrong."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.places import SMALLEST_BUNDLE
from tests.fuzz.bundle_cases import bundles
from tests.fuzz.mutate import mutated

from .program import REPORT, ended, needs_micro, refused, wav_bytes, write_wav

HOSTILE, HOSTILE_WAVS = 200, 40


@pytest.mark.slow
@needs_micro
@pytest.mark.parametrize("low_memory", [False, True])
def test_good_bundles_pass_under_sanitizers(sanitized: Path, small: Path, wavs: list[Path], low_memory: bool) -> None:
    options = ["--low-memory"] if low_memory else []
    for bundle in (SMALLEST_BUNDLE, small):
        done = ended(sanitized, str(bundle), "--verify", *options)
        assert done.returncode == (1 if low_memory and bundle == SMALLEST_BUNDLE else 0), done.stderr  # q8_0 beside F32
        assert not re.search(REPORT, done.stderr)
    assert ended(sanitized, str(small), *map(str, wavs[:3]), "--prompt", "What is it?", *options).returncode == 0


@pytest.mark.slow
def test_mutated_bundles_never_crash(sanitized: Path, tmp_path: Path) -> None:
    clip = write_wav(tmp_path / "clip.wav", np.full(8000, 1000, np.int16))
    endings = {0: 0, 1: 0}
    for seed in range(HOSTILE):
        folder = tmp_path / str(seed)
        folder.mkdir()
        what = bundles(np.random.default_rng(seed), folder).what
        verifies = seed % 4 == 0 or "golden" in what
        arguments = ["--verify"] if verifies else [str(clip), "--max-new-tokens", "2"]
        done = ended(sanitized, str(folder / "bundle"), *arguments, "--threads", "1")
        assert done.returncode in endings, (seed, what, done.stderr[-3000:])
        assert not re.search(REPORT, done.stderr), (seed, what, done.stderr[-3000:])
        assert not done.returncode or done.stderr.startswith("dasheng-caption: "), (seed, what, done.stderr)
        endings[done.returncode] += 1
        shutil.rmtree(folder)
    assert endings[1] > HOSTILE // 2  # most mutations are seen


def broken_wavs() -> Iterator[bytes]:
    kinds = [wav_bytes(np.zeros((300, channels)), rate, kind, extensible=channels > 1)
             for channels, rate, kind in ((1, 16000, "i16"), (2, 44100, "i24"), (3, 8000, "f32"))]  # fmt: skip
    yield from (b"", b"RIFF", b"RIFF\0\0\0\0WAVE", kinds[0][:40], kinds[0][:-1])
    rng = np.random.default_rng(0)
    for index in range(HOSTILE_WAVS):
        yield mutated(kinds[index % len(kinds)], rng, header_bytes=80)


@pytest.mark.slow
def test_mutated_wavs_never_crash(sanitized: Path, tmp_path: Path) -> None:
    files = []
    for index, content in enumerate(broken_wavs()):
        files.append(str(tmp_path / f"{index}.wav"))
        Path(files[-1]).write_bytes(content)
    done = ended(sanitized, str(SMALLEST_BUNDLE), *files, "--max-new-tokens", "1", "--threads", "1")
    assert done.returncode in {0, 1}, done.stderr[-3000:]
    assert not re.search(REPORT, done.stderr), done.stderr[-3000:]


@pytest.mark.slow
def test_what_is_wrong_is_said(sanitized: Path, tmp_path: Path) -> None:
    clip = str(write_wav(tmp_path / "clip.wav", np.zeros(8000, np.int16)))
    (tmp_path / "text.wav").write_text("no audio", encoding="utf-8")
    assert "no manifest.json" in refused(sanitized, str(tmp_path / "nothing"), clip)
    assert "cannot open" in refused(sanitized, str(SMALLEST_BUNDLE), str(tmp_path / "nothing.wav"))
    assert "text.wav" in refused(sanitized, str(SMALLEST_BUNDLE), str(tmp_path / "text.wav"))
    assert "threads" in refused(sanitized, str(SMALLEST_BUNDLE), clip, "--threads", "100000")
    assert "positions" in refused(sanitized, str(SMALLEST_BUNDLE), clip, "--max-new-tokens", "100000")
    for name, end in (("encoder.onnx", "altered"), ("decoder.gguf", "bytes"), ("golden.npz", "missing")):
        bundle = shutil.copytree(SMALLEST_BUNDLE, tmp_path / name)
        content = (bundle / name).read_bytes()
        if end == "altered":
            (bundle / name).write_bytes(bytes(content[:-1]) + bytes([content[-1] ^ 1]))
        elif end == "bytes":
            (bundle / name).write_bytes(content[:-1])
        else:
            (bundle / name).unlink()
        sentence = refused(sanitized, str(bundle), clip)
        assert name in sentence
        assert end in sentence
    beside = shutil.copytree(SMALLEST_BUNDLE, tmp_path / "beside")
    (beside / "encoder.onnx.data").write_bytes(b"x")
    assert "does not list" in refused(sanitized, str(beside), clip)
