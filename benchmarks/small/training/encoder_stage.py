"""First stage: the encoder names what sounds when, and the projector writes it as words the decoder knows.

Two heads on the encoder, dropped afterwards, name the kinds and languages of each patch and of the clip. The target of
the projector is the decoder's own embedding of the words for what sounds in an audio token; the decoder is not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.micro.scenes.sounds import SPEECH
from benchmarks.micro.scenes.speech import LANGUAGES
from benchmarks.micro.training import dataset
from benchmarks.micro.training.dataset import Audio
from benchmarks.micro.training.micro_model import MicroModel
from benchmarks.micro.training.training_loop import Monitor, Optimizer, Schedule, train
from benchmarks.small.scenes.kinds import KINDS
from benchmarks.small.scenes.sentences import Told
from benchmarks.small.training.features import Clip, Features

if TYPE_CHECKING:
    from transformers import Qwen2TokenizerFast

TAGS = (*KINDS, *LANGUAGES)
WORDS = (
    *(kind for kind in KINDS if kind != SPEECH),
    *(f"{who} speaking {l}" for who in ("man", "woman") for l in LANGUAGES),
)
SILENCE = "silence"
BEND = dataset.Augmentation(stretch=0.1, warp=0.05, gain_db=6.0, tilt_db=6.0, noise_share=0.25)
BATCH_FRAMES, BATCH_CLIPS = 16_000, 48
KIND_WEIGHT, WORD_WEIGHT = 5.0, 0.3
THRESHOLD = 0.5  # of a clip's kinds
SEED = 20_265


class Heads(nn.Module):
    """What the encoder learns by."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.patches = nn.Linear(dim, len(TAGS))
        self.clip = nn.Linear(2 * dim, len(TAGS))


class Trainee(nn.Module):
    """What is trained in this stage, so that one state dict holds it; the decoder is no part of it."""

    def __init__(self, model: MicroModel) -> None:
        super().__init__()
        self.encoder, self.projector = model.audio_encoder, model.audio_projector
        self.heads = Heads(model.audio_encoder.spec.embed_dim)


def word_of(told: Told) -> int:
    """Index in `WORDS` of what an event is called."""
    name = told.kind
    if name == SPEECH:
        name = f"{'woman' if told.woman else 'man'} speaking {told.language}"
    return WORDS.index(name)


def word_embeddings(model: MicroModel, tokenizer: Qwen2TokenizerFast) -> Tensor:
    """Mean of the decoder's embeddings of each word or phrase; the last row is silence: [words + 1, hidden]."""
    rows = model.decoder.model.embed_tokens.weight.detach().float()
    return torch.stack([rows[tokenizer.encode(f" {word}")].mean(0) for word in (*WORDS, SILENCE)])


def spans(clip: Clip, scale: float) -> list[tuple[Told, int, int]]:
    """Patches [start, stop) of each event of a clip that was stretched by `scale`."""
    rate = 25 * scale
    timed = zip(clip.events, clip.told, strict=True)
    return [(told, int(event.start_s * rate), round(event.end_s * rate) + 1) for event, told in timed]


def activity(clips: Sequence[Clip], audio: Audio) -> tuple[Tensor, Tensor]:
    """What sounds in which patch: tags float32 [batch, patches, TAGS], and words [batch, patches, WORDS]."""
    count = audio.log_mel.shape[-1] // dataset.SPEC.patch_frames
    tags, words = torch.zeros(len(clips), count, len(TAGS)), torch.zeros(len(clips), count, len(WORDS))
    for index, (clip, scale) in enumerate(zip(clips, audio.scale.tolist(), strict=True)):
        for told, start, stop in spans(clip, scale):
            tags[index, start:stop, TAGS.index(told.kind)] = 1
            words[index, start:stop, word_of(told)] = 1
            if told.kind == SPEECH:
                tags[index, start:stop, TAGS.index(told.language)] = 1
    return tags, words


def clip_logits(heads: Heads, patches: Tensor, counts: Tensor) -> Tensor:
    """Tags of whole clips: [batch, TAGS]."""
    real = (torch.arange(patches.shape[1], device=patches.device)[None] < counts[:, None])[..., None]
    mean, most = (patches * real).sum(1) / counts[:, None], patches.masked_fill(~real, -1e4).amax(1)
    out: Tensor = heads.clip(torch.cat([mean, most], dim=-1))
    return out.float()


def tag_loss(heads: Heads, audio: Audio, patches: Tensor, tags: Tensor) -> Tensor:
    """Binary cross-entropy of the tags, of patches and of clips."""
    real = torch.arange(patches.shape[1], device=patches.device)[None] < audio.patches[:, None]
    by_patch = F.binary_cross_entropy_with_logits(heads.patches(patches).float()[real], tags[real])
    by_clip = F.binary_cross_entropy_with_logits(clip_logits(heads, patches, audio.patches), tags.amax(1))
    return by_patch + by_clip


def word_loss(embeddings: Tensor, audio: Audio, words: Tensor, table: Tensor) -> Tensor:
    """Squared distance of audio embeddings from the words for what sounds in their patches, over that of zero."""
    size, count = dataset.SPEC.tokens_patches, embeddings.shape[1]
    shares = words[:, : count * size].reshape(len(words), count, size, -1).mean(2)
    quiet = (1 - shares.sum(-1, keepdim=True)).clamp(min=0)
    shares = torch.cat([shares, quiet], -1)
    target = (shares / shares.sum(-1, keepdim=True)) @ table
    real = torch.arange(count, device=words.device)[None] < audio.tokens[:, None]
    return (embeddings.float()[real] - target[real]).square().sum() / target[real].square().sum()


class EncoderObjective:
    """The loss of a step as a function of the step alone, so that a resumed run repeats what a straight one does."""

    def __init__(self, model: MicroModel, trainee: Trainee, table: Tensor, features: Features) -> None:
        self.model, self.trainee, self.table, self.features = model, trainee, table, features
        self.epoch, self.batches, self.before = -1, list[np.ndarray](), 0

    def batch_of(self, step: int) -> list[int]:
        """Clips of a step."""
        while step >= self.before + len(self.batches):
            self.before += len(self.batches)
            self.epoch += 1
            self.batches = dataset.batches(self.features.lengths, BATCH_FRAMES, BATCH_CLIPS, SEED, self.epoch)
        return [int(index) for index in self.batches[step - self.before]]

    def __call__(self, step: int) -> dict[str, Tensor]:
        indices, rng = self.batch_of(step), np.random.default_rng([SEED, step])
        audio, device = dataset.gather(self.features, indices, rng, BEND), self.table.device
        tags, words = (part.to(device) for part in activity([self.features.clips[index] for index in indices], audio))
        audio = audio.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            patches = self.model.encode(audio.log_mel, audio.valid)
            tagged = tag_loss(self.trainee.heads, audio, patches, tags)
            worded = word_loss(self.trainee.projector(patches), audio, words, self.table)
        (KIND_WEIGHT * tagged + WORD_WEIGHT * worded).backward()
        return {"tags": tagged.detach(), "words": worded.detach()}


@torch.no_grad()
def tagged_kinds(
    model: MicroModel, heads: Heads, features: Features, count: int
) -> list[tuple[frozenset[str], frozenset[str]]]:
    """Kinds that the clip head names, and those that there are, of the first clips."""
    out, kinds = [], list(KINDS)
    for index in range(min(count, len(features.clips))):
        device = heads.clip.weight.device
        audio = dataset.gather(features, [index], np.random.default_rng(0), None).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = clip_logits(heads, model.encode(audio.log_mel, audio.valid), audio.patches)[0, : len(kinds)]
        named = {kinds[i] for i in torch.nonzero(logits.sigmoid() > THRESHOLD).flatten().tolist()} or {
            kinds[int(logits.argmax())]
        }
        out.append((frozenset(named), frozenset(event.kind for event in features.clips[index].events)))
    return out


def f1(pairs: Sequence[tuple[frozenset[str], frozenset[str]]]) -> float:
    """Micro-averaged F1 of what is named."""
    return 2 * sum(len(a & b) for a, b in pairs) / max(sum(len(a) + len(b) for a, b in pairs), 1)


def hits(pairs: Sequence[tuple[frozenset[str], frozenset[str]]]) -> float:
    """Share of clips of one kind in which it is named."""
    return float(np.mean([bool(a & b) for a, b in pairs]))


def train_encoder(
    model: MicroModel,
    tokenizer: Qwen2TokenizerFast,
    features: Features,
    watched: tuple[Features, Features],
    schedule: Schedule,
    state: Path,
) -> tuple[float, float]:
    """Trains encoder and projector in place; (wall, CPU) seconds. `watched`: scenes, and held-out recordings."""
    table = word_embeddings(model, tokenizer)
    trainee = Trainee(model).to(table.device).eval()  # BatchNorm keeps its statistics
    named = list(trainee.named_parameters())
    matrices = [p for n, p in named if p.ndim == 2 and n.startswith("encoder.blocks.")]
    chosen = {id(p) for p in matrices}
    optimizer = Optimizer(matrices, [p for _, p in named if id(p) not in chosen], schedule)

    def report(_: int) -> str:
        scenes, recordings = (tagged_kinds(model, trainee.heads, part, 300) for part in watched)
        return f"F1 of tags {f1(scenes):.3f}, hits in held-out recordings {hits(recordings):.3f}"

    table = word_embeddings(model, tokenizer)
    return train(
        "encoder", trainee, optimizer, EncoderObjective(model, trainee, table, features), state, Monitor(200, report)
    )
