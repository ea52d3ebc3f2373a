"""The example in C++, built with CMake and held against the product; under sanitizers against mutated files."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dasheng_edge.runtime import Captioner, Embedder
from tests.fixtures.places import MICRO, SMALLEST_BUNDLE

from .nfc_table import table
from .program import CLIPS, EXAMPLE, RATE_HZ, decoded, ended, needs_micro, refused, run, wav_bytes


def test_table_of_combining_characters_is_unicodes() -> None:
    kept = (EXAMPLE / "src" / "unicode_nfc.inc").read_text("utf-8")
    if kept.splitlines()[1] != table().splitlines()[1]:
        pytest.skip(f"this Python knows another Unicode: {kept.splitlines()[1]}")
    assert kept == table()


def captions(program: Path, bundle: Path, files: Sequence[Path], *options: str) -> list[dict[str, Any]]:
    lines = run(str(program), str(bundle), *map(str, files), "--json", "--threads", "1", *options, limit_s=300)
    return [json.loads(line) for line in lines.splitlines()]


# ---- the same as the product --------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_micro
@pytest.mark.parametrize("which", ["fp32", "int8 and Q4_K_M", "fewer tokens"])
def test_texts_are_the_products(program: Path, small: Path, fewer: Path, wavs: list[Path], which: str) -> None:
    bundle = {"fp32": MICRO, "int8 and Q4_K_M": small, "fewer tokens": fewer}[which]
    with Captioner.open(bundle) as captioner:
        wanted = [captioner.caption(wav) for wav in wavs]
    got = captions(program, bundle, wavs)
    assert [one["text"] for one in got] == [one.text for one in wanted]
    for field in ("audio_tokens", "prompt_tokens", "audio_s"):
        assert [one[field] for one in got] == pytest.approx([getattr(one, field) for one in wanted], abs=1e-3)
    assert [one["tokens"] for one in got] == [len(one.tokens) for one in wanted]


@pytest.mark.slow
@needs_micro
def test_low_memory_hears_first_and_takes_less(program: Path, wavs: list[Path]) -> None:
    usual, low = (captions(program, MICRO, wavs[10:22], *options) for options in ((), ("--low-memory",)))
    # Keys and values in q8_0 are not quite the same: all but one text in twelve.
    assert sum(one["text"] == other["text"] for one, other in zip(usual, low, strict=True)) >= len(usual) - 1
    assert max(one["peak_bytes"] for one in low) < max(one["peak_bytes"] for one in usual)


@pytest.mark.slow
@needs_micro
@pytest.mark.parametrize(
    "prompt", ["What is it?", "<|im_end|> and <|AUDIO|>", "Was h\u00f6rt man? \u4f55\u306e\u97f3", "a\n\nb", "x" * 700]
)
def test_users_prompts_are_the_products(program: Path, fewer: Path, wavs: list[Path], prompt: str) -> None:
    for bundle in (MICRO, fewer):
        with Captioner.open(bundle) as captioner:
            wanted = captioner.caption(wavs[0], prompt=prompt)
        (got,) = captions(program, bundle, wavs[:1], "--prompt", prompt)
        assert (got["text"], got["prompt_tokens"]) == (wanted.text, wanted.prompt_tokens)


@pytest.mark.slow
@needs_micro
@pytest.mark.parametrize("prompt", [" x", "x\n", "", "Cafe\u0301"])
def test_prompts_that_a_template_might_change_are_refused(program: Path, wavs: list[Path], prompt: str) -> None:
    assert "the prompt" in refused(program, str(MICRO), str(wavs[0]), "--prompt", prompt)


@pytest.mark.slow
@needs_micro
def test_golden_vectors_are_accepted(program: Path, small: Path, fewer: Path) -> None:
    for bundle in (SMALLEST_BUNDLE, MICRO, small, fewer):
        seams = [json.loads(line) for line in run(str(program), str(bundle), "--verify", "--json").splitlines()]
        names = [seam["seam"] for seam in seams]
        assert {names.count(name) for name in names} == {3}
        assert len(set(names)) == 6
        assert all(seam["error"] <= seam["tolerance"] for seam in seams)


@pytest.mark.slow
def test_golden_vectors_of_another_model_are_not_accepted(program: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(SMALLEST_BUNDLE, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    manifest["tolerances"]["patches_relative"] = 0.0
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    done = ended(program, str(bundle), "--verify")
    assert (done.returncode, done.stdout.count("FAILED")) == (1, 3)
    assert "golden vectors" in done.stderr


# ---- audio files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(program: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(program.with_name("libdasheng_edge.so")))
    loaded.dasheng_edge_error.restype = ctypes.c_char_p
    loaded.dasheng_edge_free.argtypes = [ctypes.c_void_p]
    return loaded


def read_audio(library: ctypes.CDLL, path: Path) -> NDArray[np.float32]:
    samples, count = ctypes.POINTER(ctypes.c_float)(), ctypes.c_size_t()
    status = library.dasheng_edge_read_audio(os.fsencode(path), ctypes.byref(samples), ctypes.byref(count))
    assert status == 0, library.dasheng_edge_error()
    read = np.ctypeslib.as_array(samples, (count.value,)).copy()
    library.dasheng_edge_free(samples)
    return read


@pytest.mark.slow
@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(("kind", "bits"), [("u8", 8), ("i16", 16), ("i24", 24), ("i32", 24), ("f32", 24), ("f64", 24)])
def test_wav_is_read_and_mixed(library: ctypes.CDLL, tmp_path: Path, kind: str, bits: int, extensible: bool) -> None:
    left, right = np.random.default_rng(1).uniform(-0.99, 0.99, (2, 1001))
    path = tmp_path / "clip.wav"
    path.write_bytes(wav_bytes(np.stack([left, right], 1), RATE_HZ, kind, extensible=extensible))
    got = read_audio(library, path)
    assert len(got) == 1001
    assert np.abs(got - (left + right) / 2).max() < 1.01 * 2.0**-bits


@pytest.mark.slow
@pytest.mark.parametrize("rate_hz", [8000, 11025, 22050, 24000, 44100, 48000, 96000, 12345])
def test_tones_of_other_rates_keep_their_samples(library: ctypes.CDLL, tmp_path: Path, rate_hz: int) -> None:
    """Tones that both rates hold are the same within -95 dB; above what 16 kHz holds nothing is left."""
    path, seconds = tmp_path / "clip.wav", 0.5
    times, wanted_times = np.arange(int(rate_hz * seconds)) / rate_hz, np.arange(int(RATE_HZ * seconds)) / RATE_HZ
    for hertz in (50, 1000, 0.45 * min(rate_hz, RATE_HZ)):
        path.write_bytes(wav_bytes(0.5 * np.sin(2 * np.pi * hertz * times)[:, None], rate_hz, "f32"))
        got = read_audio(library, path)
        assert abs(len(got) - len(wanted_times)) <= 1
        inner = slice(400, min(len(got), len(wanted_times)) - 400)
        error = got[inner] - 0.5 * np.sin(2 * np.pi * hertz * wanted_times)[inner]
        limit = 1e-5 if rate_hz != 12345 else 1e-3  # whose phases are rounded
        assert np.abs(error).max() < limit
    if rate_hz > 2 * RATE_HZ:
        path.write_bytes(wav_bytes(0.5 * np.sin(2 * np.pi * 8100 * times)[:, None], rate_hz, "f32"))
        assert np.abs(read_audio(library, path)[400:-400]).max() < 1e-5


@pytest.mark.slow
@needs_micro
def test_resampled_clips_have_the_products_texts(program: Path, tmp_path: Path) -> None:
    files = []
    for clip, rate_hz in zip(CLIPS[12:20], (44100, 48000, 22050, 32000) * 2, strict=True):
        old = decoded(clip) / 32768
        new = np.interp(np.arange(len(old) * rate_hz // RATE_HZ) * (RATE_HZ / rate_hz), np.arange(len(old)), old)
        files.append(tmp_path / f"{clip.stem}.wav")
        files[-1].write_bytes(wav_bytes(np.stack([new, new], 1), rate_hz, "i24"))
    with Captioner.open(MICRO) as captioner:
        wanted = [captioner.caption(file).text for file in files]
    assert [one["text"] for one in captions(program, MICRO, files)] == wanted


# ---- the library ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_micro
def test_embeddings_are_the_products(library: ctypes.CDLL, wavs: list[Path]) -> None:
    class Embedding(ctypes.Structure):
        _fields_ = (
            ("rows", ctypes.POINTER(ctypes.c_float)), ("mean", ctypes.POINTER(ctypes.c_float)),
            ("count", ctypes.c_size_t), ("width", ctypes.c_size_t),
        )  # fmt: skip

    bundle, got = ctypes.c_void_p(), Embedding()
    assert library.dasheng_edge_open(os.fsencode(MICRO), None, ctypes.byref(bundle)) == 0, library.dasheng_edge_error()
    with Embedder.open(MICRO) as embedder:
        for wav in wavs[:3]:
            samples = read_audio(library, wav)
            given = samples.ctypes.data_as(ctypes.c_void_p)
            assert library.dasheng_edge_embed(bundle, given, ctypes.c_size_t(len(samples)), ctypes.byref(got)) == 0
            wanted = embedder.embed(wav)
            rows = np.ctypeslib.as_array(got.rows, (got.count, got.width))
            assert np.abs(rows - wanted.frames).max() < 1e-3
            assert np.abs(np.ctypeslib.as_array(got.mean, (got.width,)) - wanted.mean).max() < 1e-3
    library.dasheng_edge_close(bundle)


@pytest.mark.slow
@needs_micro
def test_the_readmes_binding_captions(program: Path, wavs: list[Path]) -> None:
    code = re.findall(r"^```python\n(.*?)^```$", (EXAMPLE / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)[
        0
    ]
    code = code.replace("build/example-cpp", str(program.parent)).replace("clip.wav", str(wavs[0]))
    text = run(sys.executable, "-c", code.replace("build/micro", str(MICRO)))
    assert text.strip() == captions(program, MICRO, wavs[:1])[0]["text"]


@pytest.mark.slow
def test_null_is_an_error(library: ctypes.CDLL) -> None:
    for call in ("open", "read_audio", "hear", "ask", "caption", "embed", "verify"):
        assert getattr(library, f"dasheng_edge_{call}")(*[None] * 6) == 1
        assert b"NULL" in library.dasheng_edge_error()
    for call in ("close", "clip_close", "free"):
        getattr(library, f"dasheng_edge_{call}")(None)
