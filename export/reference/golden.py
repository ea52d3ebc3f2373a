"""Test vectors of a bundle, made by the float32 reference with the merged weights.

Encoder and projector are those of `dasheng.py`; the decoder is transformers' Qwen2 or Qwen3; prompt and token ids
come from transformers' tokenizer and chat template. The clips are synthesised.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.runtime.audio.front_end import FrontEnd, FrontEndSpec
from dasheng_edge.runtime.deviation import max_difference
from dasheng_edge.runtime.errors import ExportError
from dasheng_edge.runtime.progress import Advance, no_advance

from .decoder import greedy_texts
from .encoder import load_projector, reference_features, stream_patches

TOKENS = 16  # greedy tokens of each clip ...
# ... but each costs one more pass through the checkpoint, so a decoder with more values than this gets fewer.
LARGE, TOKENS_OF_LARGE = 2_000_000_000, 4
FULL_SCALE = 32768.0  # waveforms are stored as int16: x = v / 32768


@dataclass(frozen=True)
class GoldenRequest:
    """What the decoder is asked about each clip."""

    prompt: Sequence[int]  # as `golden_prompt` gives it, with a mark for the audio
    stop_ids: frozenset[int]


def golden_clips(spec: FrontEndSpec) -> dict[str, npt.NDArray[np.int16]]:
    """Clips by name: mono int16 at 16 kHz, in lengths that are computed differently.

    One is padded to the shortest that yields a token; in the second the last patch is a query but no key, so
    that a mask that is ignored shows; the third has two chunks, an audio token that straddles them, and a last
    patch that is no key in its second chunk.
    """
    rate = spec.sample_rate_hz
    generator = np.random.default_rng(0)

    def seconds(samples: int) -> npt.NDArray[np.float64]:
        return np.arange(samples) / rate

    t = seconds(spec.min_samples - spec.hop_length)  # 3040: padded to 3200
    knock = 0.8 * np.exp(-30 * t) * np.sin(2 * np.pi * 440 * t)
    patch = spec.patch_frames * spec.hop_length
    no_key = (spec.patch_frames - 1) * spec.hop_length  # yields one more patch, none that may be attended to
    t = seconds(62 * patch + no_key)  # 40160: 63 patches, 62 keys
    pitch_hz = np.where((t * 2).astype(int) % 2, 960.0, 770.0)  # 250 ms each, by turns
    alarm = 0.4 * np.sin(2 * np.pi * np.cumsum(pitch_hz) / rate) + 0.02 * generator.standard_normal(len(t))
    t = seconds((spec.chunk_patches + 3) * patch + no_key)  # 163680: chunks of 252 and 4 patches, 252 and 3 keys
    chirp = 0.3 * np.sin(2 * np.pi * (100 * t + 3000 * t**2 / (2 * t[-1])))
    chirp[:: rate // 2] += 0.6  # a click twice a second
    chirp[4 * rate : 5 * rate] = 0  # digital silence
    clips = {"knock": knock, "alarm": alarm, "chirp and clicks": chirp}
    return {name: (clip * 32767).round().clip(-32768, 32767).astype(np.int16) for name, clip in clips.items()}


def padded(waveform: npt.NDArray[np.int16], spec: FrontEndSpec) -> npt.NDArray[np.float32]:
    """int16 [n] -> float32 [max(n, min_samples)] in [-1, 1), silence at the end."""
    samples = (waveform / FULL_SCALE).astype(np.float32)
    return np.pad(samples, (0, spec.padded_samples_of(len(samples)) - len(samples)))


@torch.inference_mode()
def golden_audio(merged: MergedTensors) -> dict[str, npt.NDArray[Any]]:
    """Waveforms, spectrograms [mels, frames] and patches [patches, dim] of all clips.

    With a decoder also the audio embeddings [n, llm_dim].
    """
    spec, clips = merged.checkpoint.front_end, golden_clips(merged.checkpoint.front_end)
    vectors: dict[str, npt.NDArray[Any]] = {"names": np.array(list(clips))}
    features = [reference_features(spec, padded(waveform, spec)) for waveform in clips.values()]
    patches = stream_patches(merged, features)
    for i, waveform in enumerate(clips.values()):
        vectors[f"waveform_{i}"], vectors[f"log_mel_{i}"] = waveform, features[i].log_mel
        acoustic = features[i].acoustic
        if acoustic is not None:
            vectors[f"acoustic_mel_{i}"] = acoustic
        vectors[f"patches_{i}"] = patches[i]
    if merged.checkpoint.decoder:
        projector = load_projector(merged)
        for i, rows in enumerate(patches):
            vectors[f"embeddings_{i}"] = projector(torch.from_numpy(rows)[None])[0].numpy()
    return vectors


def golden_tokens(merged: MergedTensors) -> int:
    """How many greedy tokens each clip gets at most."""
    large = merged.checkpoint.parameters("decoder.") > LARGE
    return TOKENS_OF_LARGE if large else TOKENS


def write_golden(
    path: Path,
    merged: MergedTensors,
    text: GoldenRequest | None,
    advance: Advance = no_advance,
) -> Mapping[str, npt.NDArray[Any]]:
    """Write `golden.npz` and return what is in it; `text` is None where there is no decoder.

    `advance` is told of each pass through the decoder, `golden_tokens` in all.

    Raises:
        ExportError: the reference itself yields NaN.
    """
    vectors = golden_audio(merged)
    gc.collect()
    if text is not None:
        audio = [torch.from_numpy(vectors[f"embeddings_{i}"]) for i in range(len(vectors["names"]))]
        count = golden_tokens(merged)
        for i, answer in enumerate(greedy_texts(merged, text.prompt, audio, text.stop_ids, count, advance)):
            vectors[f"prompt_{i}"] = np.array(answer.prompt, np.int32)
            vectors[f"logits_{i}"] = answer.logits
            vectors[f"tokens_{i}"] = np.array(answer.tokens, np.int32)
            vectors[f"margins_{i}"] = np.array(answer.margins, np.float32)
    for name, value in vectors.items():
        if value.dtype == np.float32 and not np.isfinite(value).all():
            cause = f"a weight of {merged.checkpoint.name} is not finite; download the checkpoint again"
            if adapters := " and ".join(adapter.name for adapter in merged.adapters):
                cause = (
                    f"a weight of {merged.checkpoint.name} is not finite, or not any more with {adapters} merged in (a "
                    "value too large for float32, or a row of length zero that DoRA is to stretch); export without "
                    "it to see which, then download the checkpoint again or take an earlier step of the training"
                )
            raise ExportError(f"the reference yields NaN or infinity in {name}, so {cause}")
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **vectors)
    return vectors


def golden_mel_error(path: Path, spec: FrontEndSpec, vectors: Mapping[str, npt.NDArray[Any]]) -> float:
    """Largest difference in dB between the log-mels of the golden clips and what the runtime's front end gives."""
    front_end = FrontEnd(path, spec)
    errors = []
    for i in range(len(vectors["names"])):
        got = front_end.features([padded(vectors[f"waveform_{i}"], spec)]).log_mel
        errors.append(max_difference(got, vectors[f"log_mel_{i}"]))
    return float(np.max(errors))
