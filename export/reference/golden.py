"""Test vectors of a bundle, made by the float32 reference with the merged weights.

Encoder and projector are those of `dasheng.py`; the decoder is transformers' Qwen2 or Qwen3; prompt and token ids
come from transformers' tokenizer and chat template. The clips are synthesised.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.runtime.audio.front_end import FrontEnd, FrontEndGraph
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.bundle.golden import FULL_SCALE, GoldenClip, save_golden
from dasheng_edge.runtime.deviation import max_difference
from dasheng_edge.runtime.errors import ExportError
from dasheng_edge.runtime.progress import Advance, no_advance

from .decoder import greedy_texts
from .encoder import load_projector, reference_features, stream_patches

TOKENS = 16  # greedy tokens of each clip ...
# ... but each costs one more pass through the checkpoint, so a decoder with more values than this gets fewer.
LARGE, TOKENS_OF_LARGE = 2_000_000_000, 4


@dataclass(frozen=True)
class GoldenRequest:
    """What the decoder is asked about each clip."""

    prompt: Sequence[int]  # as `golden_prompt` gives it, with a mark for the audio
    stop_ids: frozenset[int]


def golden_clips(spec: FrontEndSpec) -> dict[str, npt.NDArray[np.int16]]:
    """Clips by name: mono int16 at 16 kHz, in lengths that are computed differently.

    One is the shortest that is not padded; in it and in the second the last patch is a query but no key, so that a mask
    that is ignored shows; the third has two chunks, an audio token that straddles them, and a last
    patch that is no key in its second chunk.
    """
    rate = spec.sample_rate_hz
    generator = np.random.default_rng(0)

    def seconds(samples: int) -> npt.NDArray[np.float64]:
        return np.arange(samples) / rate

    t = seconds(spec.shortest_samples)  # 3040
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
    """int16 [n] -> float32 [n or more] in [-1, 1), silence at the end where it is too short for a token."""
    samples = (waveform / FULL_SCALE).astype(np.float32)
    return np.pad(samples, (0, spec.padded_samples_of(len(samples)) - len(samples)))


@torch.inference_mode()
def golden_audio(merged: MergedTensors) -> list[GoldenClip]:
    """All clips, without what a decoder makes of them: spectrograms [mels, frames], patches [patches, dim]."""
    spec = merged.checkpoint.front_end
    clips = golden_clips(spec)
    features = [reference_features(spec, padded(waveform, spec)) for waveform in clips.values()]
    patches = stream_patches(merged, features)
    return [
        GoldenClip(name, waveform, seen.log_mel, rows, seen.acoustic)
        for (name, waveform), seen, rows in zip(clips.items(), features, patches, strict=True)
    ]


def golden_tokens(merged: MergedTensors) -> int:
    """How many greedy tokens each clip gets at most."""
    large = merged.checkpoint.parameters("decoder.") > LARGE
    return TOKENS_OF_LARGE if large else TOKENS


def write_golden(
    path: Path,
    merged: MergedTensors,
    text: GoldenRequest | None,
    advance: Advance = no_advance,
) -> list[GoldenClip]:
    """Write `golden.npz` and return what is in it; `text` is None where there is no decoder.

    `advance` is told of each pass through the decoder, `golden_tokens` in all.

    Raises:
        ExportError: the reference itself yields NaN.
    """
    clips = golden_audio(merged)
    gc.collect()
    if text is not None:
        audio = _embeddings(merged, clips)
        answers = greedy_texts(merged, text.prompt, audio, text.stop_ids, golden_tokens(merged), advance)
        clips = [replace(clip, text=answer) for clip, answer in zip(clips, answers, strict=True)]
    for index, clip in enumerate(clips):
        for name, value in (vars(clip) | (vars(clip.text) if clip.text else {})).items():
            if isinstance(value, np.ndarray) and value.dtype == np.float32 and not np.isfinite(value).all():
                raise ExportError(f"the reference yields NaN or infinity in {name}_{index}, so {_cause(merged)}")
    save_golden(path, clips)
    return clips


@torch.inference_mode()
def _embeddings(merged: MergedTensors, clips: Sequence[GoldenClip]) -> list[torch.Tensor]:
    """Audio embeddings [n, llm_dim] of each clip."""
    projector = load_projector(merged)
    return [projector(torch.from_numpy(clip.patches)[None])[0] for clip in clips]


def _cause(merged: MergedTensors) -> str:
    name = merged.checkpoint.name
    if adapters := " and ".join(adapter.name for adapter in merged.adapters):
        return (
            f"a weight of {name} is not finite, or not any more with {adapters} merged in (a value too large for "
            "float32, or a row of length zero that DoRA is to stretch); export without it to see which, then download "
            "the checkpoint again or take an earlier step of the training"
        )
    return f"a weight of {name} is not finite; download the checkpoint again"


def golden_mel_error(path: Path, spec: FrontEndSpec, clips: Sequence[GoldenClip]) -> float:
    """Largest difference in dB between the log-mels of the golden clips and what graph and runtime give."""
    front_end, graph = FrontEnd(spec), FrontEndGraph(path, spec)
    waveforms = [padded(clip.waveform, spec) for clip in clips]
    got = [both for one in waveforms for both in (front_end.features([one]), graph.features(one))]
    wanted = [clip for clip in clips for _ in range(2)]
    return float(np.max([max_difference(one.log_mel, clip.log_mel) for one, clip in zip(got, wanted, strict=True)]))
