"""The model in PyTorch and transformers, whole and in one dtype: what people run who have no bundle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.reference.decoder import decoder_config, decoder_modules
from dasheng_edge.export.reference.encoder import load_encoder, load_projector, reference_features
from dasheng_edge.export.variants.modules import ChunkedEncoder
from dasheng_edge.runtime.audio.front_end import Features

DECODER_PREFIX = "decoder."
Prompt = Sequence[Sequence[int] | None]  # runs of token ids, and None where the audio goes


def open_merged(checkpoint: Path) -> MergedTensors:
    """The tensors of a checkpoint, without adapters."""
    return MergedTensors(open_checkpoint(checkpoint))


def torch_encoder(merged: MergedTensors, dtype: torch.dtype) -> ChunkedEncoder:
    """The reference encoder in a dtype."""
    encoder = load_encoder(merged)
    encoder.to(dtype)
    return encoder


@torch.inference_mode()
def torch_patches(encoder: ChunkedEncoder, features: Features) -> Tensor:
    """Spectrograms of a clip -> [1, patches, embed_dim] in the encoder's dtype."""
    dtype = encoder.norm.weight.dtype
    acoustic = None if features.acoustic is None else torch.from_numpy(features.acoustic)[None].to(dtype)
    patches: Tensor = encoder(torch.from_numpy(features.log_mel)[None].to(dtype), features.samples, acoustic)
    return patches


def load_decoder(merged: MergedTensors, dtype: torch.dtype) -> Any:
    """transformers' Qwen2 or Qwen3 with the weights in a dtype, of which one is converted at a time."""
    from transformers import GenerationConfig

    spec = merged.checkpoint.decoder
    assert spec is not None
    modules, config = decoder_modules(spec), decoder_config(spec)
    with torch.device("meta"):
        model = modules["model"](config)
    names = merged.names(DECODER_PREFIX)
    state = {name.removeprefix(DECODER_PREFIX): merged.tensor(name).to(dtype) for name in names}
    model.load_state_dict(state, strict=False, assign=True)  # a tied head is not among them
    model.tie_weights()
    model.model.rotary_emb = modules["rotary"](config)  # computed, not stored
    lacking = [name for name, value in model.state_dict().items() if value.is_meta]
    assert not lacking, f"no weights for {lacking}"
    # No token ends a text: each variant says as much as the others.
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0)
    return model.eval()


@dataclass(frozen=True)
class Answer:
    """What one caption took, in seconds from its start."""

    audio_s: float  # when the audio embeddings were there
    first_token_s: float
    total_s: float
    tokens: tuple[int, ...]


class _Clock:
    """A streamer, which `generate` hands each token as soon as it has it."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """Called with the prompt's ids first, of which there are none beside embeddings."""
        if value.numel():
            self.times.append(time.perf_counter())

    def end(self) -> None:
        """Called when all is said."""


class TorchPeer:
    """Captions audio; nothing is kept from one clip to the next, as transformers does it."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype) -> None:
        merged = open_merged(checkpoint)
        self.dtype, self._spec = dtype, merged.checkpoint.front_end
        self._encoder = torch_encoder(merged, dtype)
        self._projector = load_projector(merged).to(dtype)
        self._decoder = load_decoder(merged, dtype)

    @torch.inference_mode()
    def caption(self, waveform: NDArray[np.float32], prompt: Prompt, tokens: int) -> Answer:
        """Greedily, exactly so many tokens about float32 [samples] at 16 kHz."""
        start = time.perf_counter()
        features = reference_features(self._spec, waveform)
        audio = self._projector(torch_patches(self._encoder, features))
        audio_s = time.perf_counter() - start
        embed = self._decoder.get_input_embeddings()
        rows = [audio if part is None else embed(torch.tensor([list(part)])) for part in prompt if part != []]
        clock = _Clock()
        embeddings = torch.cat(rows, dim=1)
        said = self._decoder.generate(
            inputs_embeds=embeddings, attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.int64),
            max_new_tokens=tokens, streamer=clock,
        )  # fmt: skip
        total_s = time.perf_counter() - start
        return Answer(audio_s, clock.times[0] - start, total_s, tuple(said[0].tolist()))
