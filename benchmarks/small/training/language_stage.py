"""Second stage: projector and LoRA learn captions and answers; encoder and decoder stay as they are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.micro.training import dataset
from benchmarks.micro.training.adapter_training import save_adapter
from benchmarks.micro.training.base_training import answer_loss
from benchmarks.micro.training.micro_model import MicroModel
from benchmarks.micro.training.tokenizer import IM_END, prompt_ids, token_id
from benchmarks.micro.training.training_loop import Monitor, Optimizer, Schedule, train
from benchmarks.small.conversion.checkpoint import ADAPTER, AUDIO_SIDE, audio_side
from benchmarks.small.scenes.kinds import named_kinds
from benchmarks.small.scenes.sentences import CAPTION_PROMPT, questions
from benchmarks.small.training.encoder_stage import BEND, f1, hits
from benchmarks.small.training.features import Features
from dasheng_edge.runtime.atomic_output import replacing

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Qwen2TokenizerFast

TARGET_MODULES = r"^decoder\.model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(up|gate|down)_proj)$"
RANK = 16
NAME = "MiDashengLM-small"
BATCH_FRAMES, BATCH_CLIPS = 5_000, 14
CANONICAL_SHARE = 0.6  # of the captions; greedy decoding gains from one likeliest wording
ANSWER_TOKENS = 48
SEED = 20_266


def adapted(model: MicroModel) -> PeftModel:
    """The model with fresh LoRA matrices on every linear layer of the decoder."""
    from peft import LoraConfig, PeftModel

    config = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=TARGET_MODULES, exclude_modules=["lm_head"],
        task_type="CAUSAL_LM", base_model_name_or_path=NAME,
    )  # fmt: skip
    return PeftModel(model, config)


def inner(wrapped: PeftModel) -> MicroModel:
    """The model inside the wrapper, with the LoRA layers in place."""
    model = wrapped.base_model.model
    assert isinstance(model, MicroModel)
    return model


class Trained(nn.Module):
    """What learns in this stage, under one state dict without the 200 million parameters that do not."""

    def __init__(self, wrapped: PeftModel) -> None:
        super().__init__()
        model = inner(wrapped)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = "lora_" in name or name.startswith("audio_projector.")
        learning = {name.replace(".", "/"): p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters_by_name = nn.ParameterDict(learning)


class LanguageObjective:
    """The loss of a step as a function of the step alone."""

    def __init__(self, model: MicroModel, tokenizer: Qwen2TokenizerFast, features: Features) -> None:
        self.model, self.tokenizer, self.features = model, tokenizer, features
        self.epoch, self.batches, self.before = -1, list[np.ndarray](), 0
        self.device = next(model.parameters()).device

    def batch_of(self, step: int) -> list[int]:
        """Clips of a step."""
        while step >= self.before + len(self.batches):
            self.before += len(self.batches)
            self.epoch += 1
            self.batches = dataset.batches(self.features.lengths, BATCH_FRAMES, BATCH_CLIPS, SEED, self.epoch)
        return [int(index) for index in self.batches[step - self.before]]

    def __call__(self, step: int) -> dict[str, Tensor]:
        indices, rng = self.batch_of(step), np.random.default_rng([SEED, step])
        audio, device = dataset.gather(self.features, indices, rng, BEND), self.device
        told = [self.features.clips[index].told for index in indices]
        rows = [[(clip, *row) for row in questions(events, rng, CANONICAL_SHARE)] for clip, events in enumerate(told)]
        asked = dataset.questions(self.tokenizer, audio, list(itertools.chain.from_iterable(rows)))
        audio = audio.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                patches = self.model.encode(audio.log_mel, audio.valid)
            loss = answer_loss(self.model, audio, patches, asked.to(device))
        loss.backward()
        return {"text": loss.detach()}


@torch.no_grad()
def answers(
    model: MicroModel, tokenizer: Qwen2TokenizerFast, features: Features, which: Sequence[int], prompt: str
) -> list[str]:
    """Greedy answers about clips, one at a time."""
    stop, out, device = [token_id(tokenizer, IM_END)], [], next(model.parameters()).device
    for index in which:
        mel = torch.from_numpy(features.log_mel(index).astype(np.float32)).T[None].to(device)
        samples = (mel.shape[-1] - 1) * dataset.SPEC.hop_length
        ids = prompt_ids(tokenizer, prompt, dataset.SPEC.tokens_of(samples))
        with torch.autocast(device.type, torch.bfloat16):
            out.append(str(tokenizer.decode(model.answer(mel, samples, ids, stop, ANSWER_TOKENS))))
    return out


def monitor(model: MicroModel, tokenizer: Qwen2TokenizerFast, watched: tuple[Features, Features], count: int) -> str:
    """Scores of a few captions, and some of them, as lines."""
    scores, shown = [], []
    for features in watched:
        which = np.unique(np.linspace(0, len(features.clips) - 1, count).astype(int)).tolist()
        texts = answers(model, tokenizer, features, which, CAPTION_PROMPT)
        kinds = [frozenset(event.kind for event in features.clips[index].events) for index in which]
        scores.append([(named_kinds(text), known) for text, known in zip(texts, kinds, strict=True)])
        shown += [f"\n    {'; '.join(sorted(known))}: {text}" for text, known in zip(texts[:6], kinds, strict=False)]
    return f"event F1 {f1(scores[0]):.3f}, hits in held-out recordings {hits(scores[1]):.3f}{''.join(shown)}"


def write_weights(wrapped: PeftModel, audio_path: Path = AUDIO_SIDE, adapter_path: Path = ADAPTER) -> None:
    """Writes what is kept: encoder and projector, and the adapter, all in float16."""
    model = inner(wrapped)
    audio_path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(audio_path) as part:
        save_file(audio_side(model), part)
    audio_path.chmod(0o644)  # safetensors makes it readable by its owner alone
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.half()
    save_adapter(wrapped, adapter_path)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def train_language(
    model: MicroModel,
    tokenizer: Qwen2TokenizerFast,
    features: Features,
    watched: tuple[Features, Features],
    schedule: Schedule,
    state: Path,
) -> tuple[PeftModel, tuple[float, float]]:
    """Trains the projector in place and an adapter; the wrapped model and (wall, CPU) seconds."""
    wrapped = adapted(model)
    for name, parameter in inner(wrapped).named_parameters():
        if name.startswith("decoder.") and "lora_" not in name:
            parameter.data = parameter.data.bfloat16()  # frozen: half the bytes to read, and fast products
    wrapped.to(next(model.parameters()).device)
    trained = Trained(wrapped)
    optimizer = Optimizer([], list(trained.parameters()), schedule)
    clock = train(
        "language",
        trained,
        optimizer,
        LanguageObjective(inner(wrapped), tokenizer, features),
        state,
        Monitor(200, lambda step: monitor(inner(wrapped), tokenizer, watched, 150 if step == schedule.steps else 40)),
    )
    return wrapped, clock
