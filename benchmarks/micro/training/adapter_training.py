"""LoRA training with peft, in the layout of Xiaomi's mdl-toolkit: teaches the transcription of digit strings.

Encoder attention, projector and decoder MLP are adapted. Captions are rehearsed beside the transcripts, so
that the merged model still captions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import jiwer
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.micro.training import dataset
from benchmarks.micro.training.base_training import Corpus, Heads, answer, answer_loss, ctc_loss, monitor_captions
from benchmarks.micro.training.features import Features
from benchmarks.micro.training.micro_model import MicroModel
from benchmarks.micro.training.training_loop import Monitor, Optimizer, Schedule, train
from dasheng_edge.runtime.atomic_output import replacing

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Qwen2TokenizerFast

# mdl-toolkit's, verbatim: one regular expression that peft matches against whole module names.
TARGET_MODULES = (
    r"^audio_encoder\.blocks\.\d+\.attn\.(qkv|proj)$"
    r"|^audio_projector\.net\.(0|2)$"
    r"|^decoder\.model\.layers\.\d+\.(self_attn|mlp)\.(up|gate|down)_proj$"
)
RANK = 32
DIGIT_CLIPS, SCENE_FRAMES, SCENE_CLIPS = 40, 8_000, 16  # per step
CTC_WEIGHT = 0.5
SEED = 20_262
BASE_NAME = "MiDashengLM-micro"


def adapted(model: MicroModel) -> PeftModel:
    """The model with fresh LoRA matrices; only these are trainable."""
    from peft import LoraConfig, PeftModel

    config = LoraConfig(
        r=RANK,
        lora_alpha=RANK,
        lora_dropout=0.0,
        target_modules=TARGET_MODULES,
        exclude_modules=["lm_head"],
        task_type="CAUSAL_LM",
        base_model_name_or_path=BASE_NAME,
    )
    return PeftModel(model, config)


class Trainee(nn.Module):
    """The adapted model and the base training's heads, of which only the CTC head goes on learning."""

    def __init__(self, wrapped: PeftModel, heads: Heads) -> None:
        super().__init__()
        self.wrapped, self.heads = wrapped, heads

    @property
    def model(self) -> MicroModel:
        """The model inside the wrapper, with the LoRA layers in place."""
        model = self.wrapped.base_model.model
        assert isinstance(model, MicroModel)
        return model


class AdapterObjective:
    """The loss of a step as a function of the step alone."""

    def __init__(self, trainee: Trainee, tokenizer: Qwen2TokenizerFast, corpus: Corpus) -> None:
        self.trainee, self.tokenizer, self.corpus = trainee, tokenizer, corpus
        lengths = corpus.scenes.lengths
        self.scene_batches = dataset.batches(lengths, SCENE_FRAMES, SCENE_CLIPS, SEED, 0)

    def __call__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([SEED, step])
        return self._digits(rng) | self._scenes(step, rng)

    def _digits(self, rng: np.random.Generator) -> dict[str, Tensor]:
        features = self.corpus.digits[int(rng.integers(len(self.corpus.digits)))]
        indices = dataset.similar(features.lengths, DIGIT_CLIPS, rng)
        clips = [features.clips[index] for index in indices]
        audio = dataset.gather(features, indices, rng, dataset.FOR_DIGITS)
        answers = [(i, dataset.TRANSCRIPT_PROMPT, clip.digits) for i, clip in enumerate(clips)]
        asked = dataset.questions(self.tokenizer, audio, answers)
        with torch.autocast("cpu", torch.bfloat16):
            patches = self.trainee.model.encode(audio.log_mel, audio.valid)
            text = answer_loss(self.trainee.model, audio, patches, asked)
            ctc = ctc_loss(self.trainee.heads, audio, patches, clips)
        (text + CTC_WEIGHT * ctc).backward()
        return {"transcripts": text.detach(), "ctc": ctc.detach()}

    def _scenes(self, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        indices = [int(index) for index in self.scene_batches[step % len(self.scene_batches)]]
        clips = [self.corpus.scenes.clips[index] for index in indices]
        audio = dataset.gather(self.corpus.scenes, indices, rng, dataset.FOR_SCENES)
        asked = dataset.questions(self.tokenizer, audio, dataset.draw_answers(clips, rng))
        with torch.autocast("cpu", torch.bfloat16):
            patches = self.trainee.model.encode(audio.log_mel, audio.valid)
            text = answer_loss(self.trainee.model, audio, patches, asked)
        text.backward()
        return {"rehearsal": text.detach()}


def digit_error(model: MicroModel, tokenizer: Qwen2TokenizerFast, features: Features, count: int) -> float:
    """Digit error rate of the transcripts of the first clips of a set."""
    said = [answer(model, tokenizer, features, i, dataset.TRANSCRIPT_PROMPT) for i in range(count)]
    return float(jiwer.wer([clip.digits for clip in features.clips[:count]], said))


@torch.no_grad()
def monitor(trainee: Trainee, tokenizer: Qwen2TokenizerFast, corpus: Corpus, count: int) -> str:
    """Scores of a few held-out clips, as one line."""
    model = trainee.model
    line = monitor_captions(model, tokenizer, corpus, count)
    for name, features in (("espeak", corpus.fresh_espeak), ("an unheard speaker", corpus.unheard)):
        if features is not None:
            line += f", digit error of {name} {digit_error(model, tokenizer, features, count):.3f}"
    return line


def save_adapter(wrapped: PeftModel, folder: Path) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`; an older folder is replaced when all is written."""
    with replacing(folder) as scratch:
        wrapped.save_pretrained(str(scratch), save_embedding_layers=False)  # "auto" would ask the network
        (scratch / "adapter_model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner alone
        (scratch / "README.md").unlink(missing_ok=True)  # peft's empty template of a model card


def train_adapter(
    model: MicroModel,
    heads: Heads,
    tokenizer: Qwen2TokenizerFast,
    corpus: Corpus,
    schedule: Schedule,
    state: Path,
) -> tuple[PeftModel, tuple[float, float]]:
    """Trains an adapter of `model`; the wrapped model and (wall, CPU) seconds."""
    wrapped = adapted(model)
    trainee = Trainee(wrapped, heads).eval()
    optimizer = Optimizer([], [p for p in trainee.parameters() if p.requires_grad], schedule)
    clock = train(
        "adapter",
        trainee,
        optimizer,
        AdapterObjective(trainee, tokenizer, corpus),
        state,
        Monitor(200, lambda step: monitor(trainee, tokenizer, corpus, 100 if step == schedule.steps else 50)),
    )
    return wrapped, clock
