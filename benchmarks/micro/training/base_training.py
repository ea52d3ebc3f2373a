"""Base training: captions, labels and languages, with two heads on the encoder that are dropped afterwards.

The first head names the kinds of each patch and of the clip, the second spells digits by CTC, so that the
encoder hears phonemes as a pretrained Dasheng does. The decoder never sees a transcript.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jiwer
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.micro.scenes.synthesise import KINDS, named_kinds
from benchmarks.micro.training import dataset
from benchmarks.micro.training.dataset import Audio, Questions
from benchmarks.micro.training.features import Clip, Features
from benchmarks.micro.training.micro_model import MicroModel
from benchmarks.micro.training.tokenizer import IM_END, prompt_ids, token_id
from benchmarks.micro.training.training_loop import Monitor, Optimizer, Schedule, train

if TYPE_CHECKING:
    from transformers import Qwen2TokenizerFast

BATCH_FRAMES, BATCH_CLIPS = 20_000, 48
DIGIT_CLIPS = 16  # per step, beside the scenes
KIND_WEIGHT, CTC_WEIGHT = 5.0, 1.0
BLANK = 10  # CTC classes 0 to 9 are the digits
SEED = 20_261


@dataclass(frozen=True)
class Corpus:
    """Features in memory. `digits` holds the sets of digit clips that could be rendered, or none."""

    scenes: Features
    digits: tuple[Features, ...]
    held_out: Features
    fresh_espeak: Features
    unheard: Features | None


class Heads(nn.Module):
    """What the encoder learns beside the captions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.patch_kinds = nn.Linear(dim, len(KINDS))
        self.clip_kinds = nn.Linear(2 * dim, len(KINDS))
        self.digits = nn.Linear(dim, BLANK + 1)


class Trainee(nn.Module):
    """The model and its heads, so that one state dict holds both."""

    def __init__(self, model: MicroModel) -> None:
        super().__init__()
        self.model = model
        self.heads = Heads(model.audio_encoder.spec.embed_dim)


def answer_loss(model: MicroModel, audio: Audio, patches: Tensor, asked: Questions) -> Tensor:
    """Mean cross-entropy of the answer tokens."""
    embeddings = model.audio_projector(patches)
    counts = audio.tokens.tolist()
    rows = torch.cat([embeddings[clip, : counts[clip]] for clip in asked.clips])
    return sequence_loss(model, model.splice(asked.ids, rows), asked.targets)


def sequence_loss(model: MicroModel, embeddings: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the targets [batch, n] that are not ignored, given embeddings [batch, n, hidden]."""
    # Right padding never reaches a real position of a causal decoder, hence no attention mask.
    hidden = model.decoder.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    answers = targets[:, 1:] != dataset.IGNORED
    logits = model.decoder.lm_head(hidden[:, :-1][answers])
    return F.cross_entropy(logits.float(), targets[:, 1:][answers])


def kind_loss(heads: Heads, audio: Audio, patches: Tensor, clips: Sequence[Clip]) -> Tensor:
    """Binary cross-entropy of the kinds, of patches and of whole clips."""
    active = dataset.activity(clips, audio)
    real = torch.arange(patches.shape[1])[None] < audio.patches[:, None]
    by_patch = F.binary_cross_entropy_with_logits(heads.patch_kinds(patches).float()[real], active[real])
    mean = (patches * real[..., None]).sum(1) / audio.patches[:, None]
    most = patches.masked_fill(~real[..., None], -1e4).amax(1)
    logits = heads.clip_kinds(torch.cat([mean, most], dim=-1)).float()
    return by_patch + F.binary_cross_entropy_with_logits(logits, active.amax(1))


def ctc_loss(heads: Heads, audio: Audio, patches: Tensor, clips: Sequence[Clip]) -> Tensor:
    """CTC of the digit strings over the patches."""
    spoken = [[int(digit) for digit in clip.digits.split()] for clip in clips]
    return F.ctc_loss(
        heads.digits(patches).float().log_softmax(-1).transpose(0, 1),
        torch.tensor([digit for digits in spoken for digit in digits]),
        audio.patches,
        torch.tensor([len(digits) for digits in spoken]),
        blank=BLANK,
        zero_infinity=True,
    )


class BaseObjective:
    """The loss of a step as a function of the step alone, so that a resumed run repeats what a straight one does."""

    def __init__(self, trainee: Trainee, tokenizer: Qwen2TokenizerFast, corpus: Corpus) -> None:
        self.trainee, self.tokenizer, self.corpus = trainee, tokenizer, corpus
        self.epoch, self.batches, self.before = -1, list[np.ndarray](), 0

    def batch_of(self, step: int) -> list[int]:
        """Scene indices of a step."""
        while step >= self.before + len(self.batches):
            self.before += len(self.batches)
            self.epoch += 1
            self.batches = dataset.batches(self.corpus.scenes.lengths, BATCH_FRAMES, BATCH_CLIPS, SEED, self.epoch)
        return [int(index) for index in self.batches[step - self.before]]

    def __call__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([SEED, step])
        losses = self._scenes(self.batch_of(step), rng)
        if self.corpus.digits:
            losses |= self._digits(rng)
        return losses

    def _scenes(self, indices: list[int], rng: np.random.Generator) -> dict[str, Tensor]:
        model, heads = self.trainee.model, self.trainee.heads
        clips = [self.corpus.scenes.clips[index] for index in indices]
        audio = dataset.gather(self.corpus.scenes, indices, rng, dataset.FOR_SCENES)
        asked = dataset.questions(self.tokenizer, audio, dataset.draw_answers(clips, rng))
        with torch.autocast("cpu", torch.bfloat16):
            patches = model.encode(audio.log_mel, audio.valid)
            text = answer_loss(model, audio, patches, asked)
            kinds = kind_loss(heads, audio, patches, clips)
        (text + KIND_WEIGHT * kinds).backward()
        return {"text": text.detach(), "kinds": kinds.detach()}

    def _digits(self, rng: np.random.Generator) -> dict[str, Tensor]:
        model, heads = self.trainee.model, self.trainee.heads
        features = self.corpus.digits[int(rng.integers(len(self.corpus.digits)))]
        indices = [int(index) for index in rng.integers(0, len(features.clips), DIGIT_CLIPS)]
        clips = [features.clips[index] for index in indices]
        audio = dataset.gather(features, indices, rng, dataset.FOR_DIGITS)
        asked = dataset.questions(self.tokenizer, audio, dataset.draw_answers(clips, rng))
        with torch.autocast("cpu", torch.bfloat16):
            patches = model.encode(audio.log_mel, audio.valid)
            text = answer_loss(model, audio, patches, asked)
            ctc = ctc_loss(heads, audio, patches, clips)
        (0.25 * text + CTC_WEIGHT * ctc).backward()
        return {"digit text": text.detach(), "ctc": ctc.detach()}


def answer(model: MicroModel, tokenizer: Qwen2TokenizerFast, features: Features, index: int, prompt: str) -> str:
    """Greedy answer about one clip of a set, in float32."""
    mel = torch.from_numpy(features.log_mel(index).astype(np.float32)).T[None]
    samples = (mel.shape[-1] - 1) * dataset.SPEC.hop_length
    ids = prompt_ids(tokenizer, prompt, dataset.SPEC.tokens_of(samples))
    stop = token_id(tokenizer, IM_END)
    return str(tokenizer.decode(model.answer(mel, samples, ids, [stop], 64)))


def event_f1(named: Sequence[frozenset[str]], expected: Sequence[frozenset[str]]) -> float:
    """Micro-averaged F1 over the kinds of all clips."""
    right = sum(len(a & b) for a, b in zip(named, expected, strict=True))
    return 2 * right / max(sum(len(a) + len(b) for a, b in zip(named, expected, strict=True)), 1)


def spelled(trainee: Trainee, features: Features, index: int) -> str:
    """Digits that the CTC head hears in one clip."""
    mel = torch.from_numpy(features.log_mel(index).astype(np.float32)).T[None]
    patches = trainee.model.audio_encoder(mel, (mel.shape[-1] - 1) * dataset.SPEC.hop_length)
    best = trainee.heads.digits(patches)[0].argmax(-1).tolist()
    return " ".join(str(a) for a, b in zip(best, [BLANK, *best], strict=False) if a not in (b, BLANK))


def monitor_captions(model: MicroModel, tokenizer: Qwen2TokenizerFast, corpus: Corpus, count: int) -> str:
    """Event F1 of a few held-out scenes."""
    clips = corpus.held_out.clips[:count]
    told = [answer(model, tokenizer, corpus.held_out, i, dataset.CAPTION_PROMPT) for i in range(len(clips))]
    events = [frozenset(kind for kind, _, _ in clip.events) for clip in clips]
    return f"event F1 {event_f1([named_kinds(text) for text in told], events):.3f} of {count} scenes"


@torch.no_grad()
def monitor(trainee: Trainee, tokenizer: Qwen2TokenizerFast, corpus: Corpus, count: int) -> str:
    """Scores of a few held-out clips, as one line."""
    line = monitor_captions(trainee.model, tokenizer, corpus, count)
    if corpus.unheard is not None:
        heard = [spelled(trainee, corpus.unheard, i) for i in range(count)]
        spoken = [clip.digits for clip in corpus.unheard.clips[:count]]
        line += f", CTC digit error of an unheard speaker {jiwer.wer(spoken, heard):.3f}"
    return line


def normalise(model: MicroModel, features: Features) -> None:
    """Sets the encoder's first BatchNorm to the mean and variance of the training frames, band by band."""
    sample = features.frames[:: max(len(features.frames) // 500_000, 1)].astype(np.float32)
    model.audio_encoder.init_bn.running_mean = torch.from_numpy(sample.mean(0))
    model.audio_encoder.init_bn.running_var = torch.from_numpy(sample.var(0))


def train_base(
    model: MicroModel, tokenizer: Qwen2TokenizerFast, corpus: Corpus, schedule: Schedule, state: Path
) -> tuple[float, float]:
    """Trains the model in place; (wall, CPU) seconds."""
    normalise(model, corpus.scenes)
    trainee = Trainee(model).eval()  # there is no dropout, and BatchNorm keeps its statistics
    inner = ("audio_encoder.blocks.", "audio_projector.", "decoder.model.layers.")
    named = list(trainee.named_parameters())
    matrices = [p for n, p in named if p.ndim == 2 and n.removeprefix("model.").startswith(inner)]
    chosen = {id(p) for p in matrices}
    optimizer = Optimizer(matrices, [p for _, p in named if id(p) not in chosen], schedule)
    return train(
        "base",
        trainee,
        optimizer,
        BaseObjective(trainee, tokenizer, corpus),
        state,
        Monitor(400, lambda step: monitor(trainee, tokenizer, corpus, 100 if step == schedule.steps else 50)),
    )
