"""The test vectors: deterministic clips, transformers' rendering of the prompt, what the reference makes of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.torch import load_file, save_file

from dasheng_edge.export import golden
from dasheng_edge.export.adapter import MergedTensors
from dasheng_edge.export.bundle_export import PATCHES
from dasheng_edge.export.checkpoint import open_checkpoint
from dasheng_edge.export.golden import AUDIO_MARK, golden_clips, golden_prompt, padded, write_golden
from dasheng_edge.export.tokenizer import read_vocabulary
from dasheng_edge.runtime.bundle import ENCODER, GOLDEN, PromptFacts
from dasheng_edge.runtime.errors import ExportError
from dasheng_edge.runtime.front_end import FrontEndSpec
from dasheng_edge.runtime.verify import relative_rms
from tests.tiny_checkpoint import CHAT_TEMPLATE, ROWS

pytestmark = pytest.mark.torch

SPEC = FrontEndSpec()
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

    assert sizes == {5: 5, 63: 62, 256: 255}
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
        "log_mel": [(64, 21), (64, 252), (64, 1024)],
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


def test_the_prompt_is_the_templates(tiny_checkpoint: Path) -> None:
    assert text_of(tiny_checkpoint, golden_prompt(tiny_checkpoint, FACTS)) == (
        "<|im_start|>user\n<|audio_bos|>{audio}<|audio_eos|>Write an audio caption describing the sound<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_system_text_and_order_are_options(tiny_checkpoint: Path) -> None:
    facts = PromptFacts(prompt="What?", system="Be brief.", audio_first=False)

    assert text_of(tiny_checkpoint, golden_prompt(tiny_checkpoint, facts)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat?<|audio_bos|>{audio}<|audio_eos|><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_bare_audio_token_is_wrapped(checkpoint: Path) -> None:
    bare = CHAT_TEMPLATE.replace("<|audio_bos|><|AUDIO|><|audio_eos|>", "<|AUDIO|>")
    (checkpoint / "chat_template.jinja").write_text(bare)

    assert "<|audio_bos|>{audio}<|audio_eos|>Write" in text_of(checkpoint, golden_prompt(checkpoint, FACTS))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("<|AUDIO|>", ""), r"puts <\|AUDIO\|> into the prompt 0 times, expected once"),
        (lambda text: text.replace("<|AUDIO|>", "<|AUDIO|><|AUDIO|>"), "2 times, expected once"),
        (lambda text: text + "{{ raise_exception('no audio here') }}", "cannot be rendered: no audio here"),
        (lambda text: text + "{% if %}", "cannot be rendered"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(checkpoint: Path, edit: Callable[[str], str], message: str) -> None:
    (checkpoint / "chat_template.jinja").write_text(edit(CHAT_TEMPLATE))
    with pytest.raises(ExportError, match=message):
        golden_prompt(checkpoint, FACTS)


def test_a_reference_that_yields_nan_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tensors: dict[str, Any] = load_file(checkpoint / "model.safetensors")
    tensors["decoder.model.norm.weight"][3] = float("nan")
    save_file(tensors, checkpoint / "model.safetensors")
    merged = MergedTensors(open_checkpoint(checkpoint))

    with pytest.raises(ExportError, match="NaN or infinity in logits_0"):
        write_golden(tmp_path / GOLDEN, merged, read_vocabulary(checkpoint, ROWS), golden_prompt(checkpoint, FACTS))
    assert not (tmp_path / GOLDEN).exists()


def meminfo(path: Path, available: str) -> Path:
    path.write_text(f"MemTotal:       16000000 kB\nMemFree:            1000 kB\n{available}Buffers: 7 kB\n")
    return path


def test_a_decoder_larger_than_the_memory_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = MergedTensors(open_checkpoint(tiny_checkpoint))  # its decoder takes 5.4 MiB
    monkeypatch.setattr(golden, "MEMINFO", meminfo(tmp_path / "meminfo", "MemAvailable:       4000 kB\n"))
    with pytest.raises(ExportError, match=r"checkpoint in float32, 0\.0 GiB of memory, and 0\.0 GiB are available"):
        golden.check_memory(merged)
    monkeypatch.setattr(golden, "available_memory", lambda: 5_645_311)
    with pytest.raises(ExportError, match=r"export on a machine with more memory"):
        write_golden(
            tmp_path / GOLDEN, merged, read_vocabulary(tiny_checkpoint, ROWS), golden_prompt(tiny_checkpoint, FACTS)
        )
    monkeypatch.setattr(golden, "available_memory", lambda: 5_645_312)
    golden.check_memory(merged)


def test_where_the_system_does_not_tell_the_memory_nothing_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path / "absent", meminfo(tmp_path / "meminfo", "")):
        monkeypatch.setattr(golden, "MEMINFO", path)
        assert golden.available_memory() is None
        golden.check_memory(MergedTensors(open_checkpoint(tiny_checkpoint)))
