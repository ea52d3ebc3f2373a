"""Batches: clips in buckets of similar length, augmented log-mels, frame labels and question-answer sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.micro.scenes.synthesise import KINDS
from benchmarks.micro.training.features import Clip
from benchmarks.micro.training.tokenizer import AUDIO, IM_END, prompt_ids, token_id
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec

if TYPE_CHECKING:
    from transformers import Qwen2TokenizerFast

CAPTION_PROMPT = "Write an audio caption describing the sound"
LABELS_PROMPT = "Which labels describe the sound?"
LANGUAGE_PROMPT = "What language is spoken?"
TRANSCRIPT_PROMPT = "Transcribe the speech into text <|en|>"
PROMPTS = (CAPTION_PROMPT, LABELS_PROMPT, LANGUAGE_PROMPT, TRANSCRIPT_PROMPT)
CANONICAL_SHARE = 0.7  # of the captions; greedy decoding gains from one likeliest wording

SPEC = FrontEndSpec()
FLOOR_DB = -100.0
POOL_CLIPS = 1024  # clips that are sorted by length together
IGNORED = -100  # target of a position without loss

Rng = np.random.Generator


@dataclass(frozen=True)
class Augmentation:
    """How far a clip may be bent, each drawn uniformly between plus and minus the bound."""

    stretch: float  # of time, as a factor 1 +- stretch
    warp: float  # of the mel axis, as a factor: voices of other vocal tract lengths
    gain_db: float
    tilt_db: float  # from the lowest to the highest band
    noise_share: float  # of the clips that get stationary noise


FOR_SCENES = Augmentation(stretch=0.08, warp=0.04, gain_db=6.0, tilt_db=4.0, noise_share=0.2)
FOR_DIGITS = Augmentation(stretch=0.1, warp=0.06, gain_db=8.0, tilt_db=12.0, noise_share=0.4)


@dataclass(frozen=True)
class Audio:
    """Log-mels [batch, 64, frames], right-padded. `frames` int64 [batch] are the true lengths; `scale`: stretch."""

    log_mel: Tensor
    frames: Tensor
    scale: Tensor

    def to(self, device: torch.device) -> Audio:
        """The same on a device."""
        return Audio(self.log_mel.to(device), self.frames.to(device), self.scale.to(device))

    @property
    def valid(self) -> Tensor:
        """Patches that are keys: floor(samples / 640) with samples in [160 (frames - 1), 160 frames)."""
        return (self.frames - 1) // SPEC.patch_frames

    @property
    def patches(self) -> Tensor:
        """Patches of each clip."""
        return self.frames // SPEC.patch_frames

    @property
    def tokens(self) -> Tensor:
        """Audio tokens of each clip."""
        return self.patches // SPEC.tokens_patches


@dataclass(frozen=True)
class Questions:
    """Sequences [count, length]: ids, targets (IGNORED outside the answers) and which clip each one is about."""

    ids: Tensor
    targets: Tensor
    clips: tuple[int, ...]

    def to(self, device: torch.device) -> Questions:
        """The same on a device."""
        return Questions(self.ids.to(device), self.targets.to(device), self.clips)


def batches(lengths: NDArray[np.int64], frames: int, most: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """One epoch of index batches of similar length: at most `most` clips and `frames` padded frames each."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    out = []
    for start in range(0, len(order), POOL_CLIPS):
        pool = order[start : start + POOL_CLIPS]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        while len(pool):
            # Sorted upwards, so the last clip of a batch decides its padding.
            costs = lengths[pool[:most]] * np.arange(1, len(pool[:most]) + 1)
            count = max(int(np.searchsorted(costs, frames, side="right")), 1)
            out.append(pool[:count])
            pool = pool[count:]
    return [out[index] for index in rng.permutation(len(out))]


def similar(lengths: NDArray[np.int64], count: int, rng: Rng) -> list[int]:
    """`count` random clips of similar length: one of four parts, by length, of four times as many."""
    drawn = rng.integers(0, len(lengths), 4 * count)
    drawn = drawn[np.argsort(lengths[drawn], kind="stable")]
    part = int(rng.integers(4))
    return [int(index) for index in drawn[part * count : (part + 1) * count]]


class LogMels(Protocol):
    """Clips by index."""

    def log_mel(self, index: int) -> NDArray[np.float16]:
        """Log-mel [frames, 64] in dB of one clip."""
        ...


def gather(features: LogMels, indices: Sequence[int], rng: Rng, bend: Augmentation | None) -> Audio:
    """Log-mels of the clips as one batch; `bend` None leaves them as they are."""
    mels = [features.log_mel(int(index)) for index in indices]
    lengths = np.array([len(mel) for mel in mels])
    padded = np.full((len(mels), SPEC.n_mels, lengths.max()), FLOOR_DB, np.float32)
    for row, mel in zip(padded, mels, strict=True):
        row[:, : len(mel)] = mel.T
    x = torch.from_numpy(padded)
    scale = np.ones(len(mels))
    if bend is not None:
        scale = 1 + rng.uniform(-bend.stretch, bend.stretch, len(mels))
        lengths = np.maximum((lengths * scale).astype(np.int64), 20)  # one token at least
        x = _warped(x, scale, 1 + rng.uniform(-bend.warp, bend.warp, len(mels)), int(lengths.max()))
        x = _coloured(x, rng, bend)
    return Audio(x, torch.from_numpy(lengths), torch.from_numpy(scale).float())


def _warped(x: Tensor, scale: NDArray[np.float64], warp: NDArray[np.float64], width: int) -> Tensor:
    """Stretches time by `scale` and the mel axis by `warp` (bilinear): [batch, 64, frames] -> [batch, 64, width]."""
    batch, bands, frames = x.shape
    # grid_sample's coordinates run from -1 to 1 between the centres of the first and the last cell.
    time = torch.arange(width)[None] / torch.from_numpy(scale)[:, None] * (2 / (frames - 1)) - 1
    band = torch.arange(bands)[None] * torch.from_numpy(warp)[:, None] * (2 / (bands - 1)) - 1
    grid = torch.stack(
        [time[:, None, :].expand(batch, bands, width), band[:, :, None].expand(batch, bands, width)], dim=-1
    )
    sampled = F.grid_sample(x[:, None], grid.float(), padding_mode="border", align_corners=True)
    return sampled[:, 0]


def _coloured(x: Tensor, rng: Rng, bend: Augmentation) -> Tensor:
    """Level, spectral tilt, a soft resonance, stationary noise and one masked band."""
    batch, bands, _ = x.shape
    axis = np.linspace(-0.5, 0.5, bands)[None]
    level = rng.uniform(-bend.gain_db, bend.gain_db, (batch, 1))
    tilt = rng.uniform(-bend.tilt_db, bend.tilt_db, (batch, 1)) * axis
    centre, width = rng.uniform(-0.5, 0.5, (batch, 1)), rng.uniform(0.05, 0.3, (batch, 1))
    bump = 0.5 * rng.uniform(-bend.tilt_db, bend.tilt_db, (batch, 1)) * np.exp(-(((axis - centre) / width) ** 2))
    x = x + torch.from_numpy(level + tilt + bump).float()[..., None]
    loud = x.amax(dim=(1, 2)).numpy()[:, None]
    noise = loud - rng.uniform(25, 70, (batch, 1)) + rng.uniform(-10, 10, (batch, 1)) * axis
    noise = np.where(rng.uniform(size=(batch, 1)) < bend.noise_share, noise, FLOOR_DB)
    x = torch.maximum(x, torch.from_numpy(noise).float()[..., None] + 2 * torch.randn(x.shape, generator=_torch(rng)))
    first, count = rng.integers(0, bands, batch), rng.integers(0, 6, batch)
    masked = (np.arange(bands) >= first[:, None]) & (np.arange(bands) < (first + count)[:, None])
    x = torch.where(torch.from_numpy(masked)[..., None], x.mean(dim=(1, 2), keepdim=True), x)
    return x.clamp(min=FLOOR_DB)


def _torch(rng: Rng) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(2**62)))


def activity(clips: Sequence[Clip], audio: Audio) -> Tensor:
    """Which kind sounds in which patch: float32 [batch, padded patches, kinds]."""
    out = torch.zeros(len(clips), audio.log_mel.shape[-1] // SPEC.patch_frames, len(KINDS))
    for row, clip, scale in zip(out, clips, audio.scale.tolist(), strict=True):
        for kind, start_s, end_s in clip.events:
            patches_per_s = 25 * scale
            row[int(start_s * patches_per_s) : round(end_s * patches_per_s) + 1, KINDS.index(kind)] = 1
    return out


def draw_answers(clips: Sequence[Clip], rng: Rng) -> list[tuple[int, str, str]]:
    """(clip, prompt, answer): a caption of every clip, labels of a third, the language of another third."""
    out = []
    for index, clip in enumerate(clips):
        wording = 0 if rng.uniform() < CANONICAL_SHARE else int(rng.integers(len(clip.captions)))
        out.append((index, CAPTION_PROMPT, clip.captions[wording]))
        choice = rng.uniform()
        if choice < 1 / 3:
            out.append((index, LABELS_PROMPT, clip.labels))
        elif choice < 2 / 3:
            out.append((index, LANGUAGE_PROMPT, clip.language))
    return out


def questions(tokenizer: Qwen2TokenizerFast, audio: Audio, answers: Sequence[tuple[int, str, str]]) -> Questions:
    """The chat sequences of (clip, prompt, answer); the answer and `<|im_end|>` are the targets."""
    audio_id, end_id = token_id(tokenizer, AUDIO), token_id(tokenizer, IM_END)
    tokens = audio.tokens.tolist()
    heads: dict[str, tuple[list[int], list[int]]] = {}
    rows = []
    for clip, prompt, answer in answers:
        if prompt not in heads:
            ids = prompt_ids(tokenizer, prompt, 1)
            at = ids.index(audio_id)
            heads[prompt] = ids[:at], ids[at + 1 :]
        before, after = heads[prompt]
        asked = [*before, *[audio_id] * tokens[clip], *after]
        rows.append((asked, [*tokenizer.encode(answer), end_id]))
    length = max(len(asked) + len(said) for asked, said in rows)
    out_ids = torch.full((len(rows), length), end_id)
    targets = torch.full((len(rows), length), IGNORED)
    for row, target, (asked, said) in zip(out_ids, targets, rows, strict=True):
        row[: len(asked) + len(said)] = torch.tensor(asked + said)
        target[len(asked) : len(asked) + len(said)] = torch.tensor(said)
    return Questions(out_ids, targets, tuple(clip for clip, _, _ in answers))
