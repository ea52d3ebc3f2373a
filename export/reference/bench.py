"""What a checkpoint takes in PyTorch: `python -m dasheng_edge.export.reference.bench`, a request on stdin.

`dasheng-edge bench --against transformers` starts it, so that memory is that process's alone. The encoder is the
reference's, whose operations are those of the published model; the decoder is transformers' Qwen2 or Qwen3 with its
own cache. Each clip gets as many tokens as the bundle has given it, whatever they are: the same work.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from dasheng_edge.export.checkpoint.sizes import decoder_config, decoder_modules
from dasheng_edge.runtime.child import serve
from dasheng_edge.runtime.errors import CheckpointError
from dasheng_edge.runtime.machine.meters import peak_rss_bytes

from .encoder import ENCODER_PREFIX, PROJECTOR_PREFIX, load_weights, meta_encoder, meta_projector, reference_features

STAGES = ("front_end", "encoder", "projector", "prefill", "decode", "total")


class TransformersModel:
    """All parts in one precision."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        merged = MergedTensors(checkpoint)
        self.spec, self.dtype = checkpoint.front_end, dtype
        self.encoder, self.projector = meta_encoder(merged), meta_projector(merged)
        load_weights(self.encoder, _tensors(merged, ENCODER_PREFIX, dtype))
        load_weights(self.projector, _tensors(merged, PROJECTOR_PREFIX, dtype))
        self.decoder = _decoder(merged, dtype)
        self.embed: nn.Module = self.decoder.get_input_embeddings()

    @torch.inference_mode()
    def answer(
        self, samples: Tensor, prompt: Sequence[Sequence[int] | None], new_tokens: int
    ) -> tuple[dict[str, float], list[int]]:
        """Milliseconds of each stage for a waveform float32 [n], and the tokens; `prompt` has None for the audio."""
        from transformers import DynamicCache

        laps = [time.perf_counter()]

        def lap() -> None:
            laps.append(time.perf_counter())

        size = self.spec.padded_samples_of(len(samples))
        features = reference_features(self.spec, np.pad(samples.numpy(), (0, size - len(samples))))
        log_mel = torch.from_numpy(features.log_mel)[None].to(self.dtype)
        acoustic = None if features.acoustic is None else torch.from_numpy(features.acoustic)[None].to(self.dtype)
        lap()
        patches = self.encoder(log_mel, features.samples, acoustic)
        lap()
        audio = self.projector(patches)
        lap()
        rows = [audio if part is None else self.embed(torch.tensor([list(part)])) for part in prompt]
        cache = DynamicCache()
        tokens = [self._next(cache, inputs_embeds=torch.cat(rows, dim=1))]
        lap()
        for _ in range(new_tokens - 1):
            tokens.append(self._next(cache, input_ids=tokens[-1]))
        lap()
        stages = [1000 * (after - before) for before, after in pairwise(laps)]
        total = 1000 * (laps[-1] - laps[0])
        return dict(zip(STAGES, [*stages, total], strict=True)), [int(token) for token in tokens]

    def _next(self, cache: Any, **rows: Tensor) -> Tensor:
        """The likeliest token after these rows, int64 [1, 1]."""
        states: Tensor = self.decoder.model(**rows, past_key_values=cache, use_cache=True).last_hidden_state
        # As a matrix: of [1, 1, width] cut from more rows, PyTorch's bfloat16 product takes fifty times as long.
        logits: Tensor = self.decoder.lm_head(states[0, -1:])
        return logits.argmax(-1)[None]


def _decoder(merged: MergedTensors, dtype: torch.dtype) -> Any:
    spec = merged.checkpoint.text_decoder
    config, modules = decoder_config(spec), decoder_modules(spec)
    with torch.device("meta"):
        decoder = modules["model"](config)
    decoder.model.rotary_emb = modules["rotary"](config)  # its buffer is in no checkpoint
    state = _tensors(merged, "decoder.", dtype)
    if merged.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    load_weights(decoder, state)
    return decoder


def _tensors(merged: MergedTensors, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """One converted after the other, since all of them in float32 may not fit."""
    return {name.removeprefix(prefix): merged.tensor(name).to(dtype) for name in merged.names(prefix)}


def check_sizes(checkpoint: Checkpoint, wanted: Mapping[str, object]) -> None:
    """Refuse a checkpoint that the bundle cannot have been made of.

    Raises:
        CheckpointError: its sizes are others.
    """
    encoder, decoder = checkpoint.encoder, checkpoint.decoder
    got: dict[str, object] = {"embed_dim": encoder.embed_dim, "depth": encoder.depth}
    if decoder is not None:
        got |= {"hidden_size": decoder.hidden_size, "layers": decoder.layers, "vocab_size": decoder.vocab_size}
    if got != wanted:
        raise CheckpointError(
            f"{checkpoint.folder} has {got}, the bundle {dict(wanted)}; pass the checkpoint that it was exported from"
        )


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Do what `bench --against` asks for; times in milliseconds, one for each round and clip.

    Raises:
        CheckpointError: the checkpoint cannot be opened, or is not the bundle's.
    """
    torch.set_num_threads(request["threads"])
    start = time.perf_counter()
    checkpoint = open_checkpoint(Path(request["checkpoint"]))
    check_sizes(checkpoint, request["sizes"])
    model = TransformersModel(checkpoint, getattr(torch, request["dtype"]))
    load_ms = 1000 * (time.perf_counter() - start)
    with np.load(request["clips"]) as file:
        clips = [torch.from_numpy(file[name]) for name in file.files]
    stages: dict[str, list[float]] = {name: [] for name in STAGES}
    for index in range(request["rounds"] + 1):
        for clip, count in zip(clips, request["new_tokens"], strict=True):
            found, _ = model.answer(clip, request["prompt"], count)
            for name in STAGES if index else ():  # the first round warms up
                stages[name].append(found[name])
    return {"load_ms": load_ms, "stages_ms": stages, "peak_rss_bytes": peak_rss_bytes()}


if __name__ == "__main__":
    serve(lambda request, _: measure(request))
