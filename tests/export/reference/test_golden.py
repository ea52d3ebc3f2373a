"""The test vectors: deterministic clips, transformers' rendering of the prompt, what the reference makes of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.torch import load_file, save_file

from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.bundle_export import PATCHES
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.gguf.tokenizer import read_vocabulary
from dasheng_edge.export.reference.golden import GoldenRequest, golden_clips, padded, write_golden
from dasheng_edge.runtime.bundle.bundle import ENCODER, GOLDEN
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.bundle.golden import AUDIO_MARK
from dasheng_edge.runtime.bundle.manifest import PromptFacts
from dasheng_edge.runtime.deviation import relative_rms
from dasheng_edge.runtime.errors import ExportError
from tests.fixtures.tiny_checkpoint import ROWS

SPEC = FrontEndSpec(pads_below=3040)
FACTS = PromptFacts(prompt="Write an audio caption describing the sound")


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def text_of(checkpoint: Path, ids: list[int]) -> str:
    tokens = read_vocabulary(checkpoint, ROWS).tokens
    return "".join("{audio}" if i == AUDIO_MARK else tokens[i] for i in ids).replace("Ġ", " ").replace("Ċ", "\n")


def test_clips_are_deterministic_and_of_the_lengths_that_matter() -> None:
    clips, again = golden_clips(SPEC), golden_clips(SPEC)

    assert [len(clip) for clip in clips.values()] == [3040, 40_160, 163_680]
    assert all(np.array_equal(clips[name], again[name]) for name in clips)
    assert all(clip.dtype == np.int16 and 3000 < np.abs(clip.astype(int)).max() < 32_768 for clip in clips.values())


def test_some_patches_are_no_keys_and_one_clip_has_two_chunks(tiny_bundle: Path) -> None:
    """Else a runtime that ignores the mask, or cuts no chunks, would pass."""
    with np.load(tiny_bundle / GOLDEN, allow_pickle=False) as file:
        vectors = dict(file)
    encoder = onnxruntime.InferenceSession(tiny_bundle / ENCODER, providers=["CPUExecutionProvider"])
    sizes = {}
    for i in range(len(vectors["names"])):
        samples, patches = len(padded(vectors[f"waveform_{i}"], SPEC)), vectors[f"patches_{i}"]
        sizes[len(patches)] = SPEC.valid_patches_of(samples)
        if len(patches) <= SPEC.chunk_patches and SPEC.valid_patches_of(samples) < len(patches):
            unmasked = {"log_mel": vectors[f"log_mel_{i}"][None], "valid_patches": np.array([len(patches)])}
            got = encoder.run(None, unmasked)[0][0]
            assert relative_rms(got, patches) > 10 * PATCHES

    assert sizes == {5: 4, 63: 62, 256: 255}
    assert [len(SPEC.chunks_of(patches)) for patches in sizes] == [1, 1, 2]


def test_short_clips_are_padded_with_silence() -> None:
    clip = padded(np.array([-32_768, 16_384], np.int16), SPEC)

    assert clip.dtype == np.float32
    assert clip[:2].tolist() == [-1.0, 0.5]
    assert len(clip) == 3200
    assert not clip[2:].any()
    assert len(padded(np.zeros(4000, np.int16), SPEC)) == 4000


def test_the_file_holds_every_seam_of_every_clip(tiny_bundle: Path) -> None:
    with np.load(tiny_bundle / GOLDEN, allow_pickle=False) as file:
        vectors = dict(file)
    shapes = {
        "waveform": [(3040,), (40_160,), (163_680,)],
        "log_mel": [(64, 20), (64, 252), (64, 1024)],
        "patches": [(5, 64), (63, 64), (256, 64)],
        "embeddings": [(1, 256), (12, 256), (51, 256)],
        "logits": [(ROWS,)] * 3,
    }

    assert vectors.pop("names").tolist() == ["knock", "alarm", "chirp and clicks"]
    for name, wanted in shapes.items():
        arrays = [vectors.pop(f"{name}_{i}") for i in range(3)]
        assert [array.shape for array in arrays] == wanted
        assert {array.dtype for array in arrays} == {np.dtype(np.int16 if name == "waveform" else np.float32)}
    for i in range(3):
        prompt, tokens, margins = (vectors.pop(f"{name}_{i}") for name in ("prompt", "tokens", "margins"))
        assert prompt.dtype == tokens.dtype == np.int32
        assert (prompt == AUDIO_MARK).sum() == 1
        assert 1 <= len(tokens) == len(margins) <= 16
        assert (margins >= 0).all()
    assert not vectors


def test_a_reference_that_yields_nan_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tensors: dict[str, Any] = load_file(checkpoint / "model.safetensors")
    tensors["decoder.model.norm.weight"][3:5] = 3e38  # which no product with another weight stays below
    tensors["decoder.lm_head.weight"][:, 3:5] *= 1e4
    save_file(tensors, checkpoint / "model.safetensors")
    merged = MergedTensors(open_checkpoint(checkpoint))

    with pytest.raises(ExportError, match="NaN or infinity in logits_0"):
        write_golden(tmp_path / GOLDEN, merged, GoldenRequest([3, AUDIO_MARK, 4], frozenset()))
    assert not (tmp_path / GOLDEN).exists()
