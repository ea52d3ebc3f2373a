"""The decoder learns to write digits, from text alone: it copies digit strings while captions are rehearsed.

A pretrained language model can write digits before it hears any; this one has only met caption words, and an
adapter that leaves the output head as it is could not teach it new ones. No audio of digits takes part.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from benchmarks.micro.training import dataset
from benchmarks.micro.training.base_training import Corpus, answer_loss, monitor_captions, sequence_loss
from benchmarks.micro.training.dataset import IGNORED, Questions
from benchmarks.micro.training.micro_model import MicroModel
from benchmarks.micro.training.tokenizer import AUDIO, AUDIO_BOS, AUDIO_EOS, IM_END, prompt_ids, token_id
from benchmarks.micro.training.training_loop import Monitor, Optimizer, Schedule, train

if TYPE_CHECKING:
    from transformers import Qwen2TokenizerFast

COPIES, SCENE_FRAMES, SCENE_CLIPS = 64, 8_000, 16  # per step
MAX_DIGITS = 6
SEED = 20_263


def copies(tokenizer: Qwen2TokenizerFast, rng: np.random.Generator, count: int) -> Questions:
    """Text-only turns such as "Write 4 0 7", answered by "4 0 7"."""
    end, audio = token_id(tokenizer, IM_END), {token_id(tokenizer, token) for token in (AUDIO, AUDIO_BOS, AUDIO_EOS)}
    rows = []
    for _ in range(count):
        digits = " ".join(str(digit) for digit in rng.integers(0, 10, int(rng.integers(1, MAX_DIGITS + 1))))
        asked = [token for token in prompt_ids(tokenizer, f"Write {digits}", 0) if token not in audio]
        rows.append((asked, [*tokenizer.encode(digits), end]))
    length = max(len(asked) + len(said) for asked, said in rows)
    ids, targets = torch.full((count, length), end), torch.full((count, length), IGNORED)
    for row, target, (asked, said) in zip(ids, targets, rows, strict=True):
        row[: len(asked) + len(said)] = torch.tensor(asked + said)
        target[len(asked) : len(asked) + len(said)] = torch.tensor(said)
    return Questions(ids, targets, ())


class WritingObjective:
    """The loss of a step as a function of the step alone; encoder and projector stay as they are."""

    def __init__(self, model: MicroModel, tokenizer: Qwen2TokenizerFast, corpus: Corpus) -> None:
        self.model, self.tokenizer, self.corpus = model, tokenizer, corpus
        self.scene_batches = dataset.batches(corpus.scenes.lengths, SCENE_FRAMES, SCENE_CLIPS, SEED, 0)

    def __call__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([SEED, step])
        written = copies(self.tokenizer, rng, COPIES)
        indices = [int(index) for index in self.scene_batches[step % len(self.scene_batches)]]
        clips = [self.corpus.scenes.clips[index] for index in indices]
        audio = dataset.gather(self.corpus.scenes, indices, rng, dataset.FOR_SCENES)
        asked = dataset.questions(self.tokenizer, audio, dataset.draw_answers(clips, rng))
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = self.model.decoder.model.embed_tokens(written.ids)
            copied = sequence_loss(self.model, embeddings, written.targets)
            with torch.no_grad():
                patches = self.model.encode(audio.log_mel, audio.valid)
            text = answer_loss(self.model, audio, patches, asked)
        (copied + text).backward()
        return {"copies": copied.detach(), "rehearsal": text.detach()}


def train_writing(
    model: MicroModel, tokenizer: Qwen2TokenizerFast, corpus: Corpus, schedule: Schedule, state: Path
) -> tuple[float, float]:
    """Trains the decoder in place; (wall, CPU) seconds."""
    model.eval()
    model.audio_projector.requires_grad_(requires_grad=False)
    optimizer = Optimizer([], list(model.decoder.parameters()), schedule)
    objective = WritingObjective(model, tokenizer, corpus)
    report = Monitor(schedule.steps, lambda _: monitor_captions(model, tokenizer, corpus, 100))
    return train("writing", model.decoder, optimizer, objective, state, report)
