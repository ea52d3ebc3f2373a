"""The reference decoder, transformers' Qwen2 or Qwen3 in float32, with one layer in memory at a time.

Layer i of all texts is computed before layer i + 1 is read, so that 31 GB of weights (7B) need 1 GB. Each
further token reads the checkpoint once more, from the system's cache where it fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.checkpoint.sizes import EMBEDDING, HEAD, decoder_config, decoder_modules
from dasheng_edge.export.files.tensor_files import row_blocks
from dasheng_edge.runtime.bundle.golden import AUDIO_MARK, GoldenText
from dasheng_edge.runtime.progress import Advance, no_advance

NORM = "decoder.model.norm.weight"


@dataclass
class Decoding:
    """One text in the making: rows that are to be decoded next, and the keys and values of those before."""

    rows: Tensor  # float32 [n, hidden]
    cache: Any  # transformers' DynamicCache
    past: int = 0  # rows in the cache
    tokens: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    first: npt.NDArray[np.float32] | None = None  # logits after the prompt


class ReferenceDecoder:
    """Decodes several sequences side by side, layer by layer."""

    def __init__(self, merged: MergedTensors) -> None:
        self._merged = merged
        self._config = decoder_config(merged.checkpoint.text_decoder)
        self._modules = decoder_modules(merged.checkpoint.text_decoder)
        self._rotary = self._modules["rotary"](self._config)

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Token ids -> float32 [n, hidden]."""
        return torch.cat([self._merged.rows(EMBEDDING, token, token + 1) for token in tokens])

    @torch.inference_mode()
    def step(self, sequences: Sequence[Decoding]) -> Tensor:
        """Decode the rows of each sequence; returns the logits of each last row, float32 [sequences, vocab]."""
        hidden = [sequence.rows[None] for sequence in sequences]
        for index in range(self._config.num_hidden_layers):
            hidden = self._layer(index, hidden, sequences)
        for sequence in sequences:
            sequence.past += len(sequence.rows)
        last = torch.cat([rows[:, -1] for rows in hidden])
        norm = self._modules["norm"](last.shape[-1], eps=self._config.rms_norm_eps)
        norm.load_state_dict({"weight": self._merged.tensor(NORM)})
        head = EMBEDDING if self._merged.tied else HEAD
        last = norm(last)
        blocks = row_blocks(self._merged.shape(head))
        return torch.cat([last @ self._merged.rows(head, start, stop).T for start, stop in blocks], dim=1)

    def _layer(self, index: int, hidden: Sequence[Tensor], sequences: Sequence[Decoding]) -> list[Tensor]:
        with torch.device("meta"):
            layer = self._modules["layer"](self._config, index)
        layer.load_state_dict(self._merged.state_dict(f"decoder.model.layers.{index}."), assign=True)
        layer.eval()
        results = []
        for rows, sequence in zip(hidden, sequences, strict=True):
            positions = torch.arange(sequence.past, sequence.past + rows.shape[1])
            out = layer(
                rows,
                position_embeddings=self._rotary(rows, positions[None]),
                past_key_values=sequence.cache,
                cache_position=positions,
            )
            results.append(out[0] if isinstance(out, tuple) else out)
        return results


def greedy_texts(
    merged: MergedTensors,
    prompt: Sequence[int],
    audio: Sequence[Tensor],
    stop_ids: frozenset[int],
    count: int,
    advance: Advance = no_advance,
) -> list[GoldenText]:
    """Greedy answers, at most `count` tokens each, to one prompt with each clip's audio rows float32 [n, hidden].

    `advance` is told of each pass through the decoder, of which there are at most `count`.
    """
    from transformers import DynamicCache

    decoder = ReferenceDecoder(merged)
    place = list(prompt).index(AUDIO_MARK)
    before, after = decoder.embed(prompt[:place]), decoder.embed(prompt[place + 1 :])
    texts = [Decoding(torch.cat([before, rows, after]), DynamicCache()) for rows in audio]
    for _ in range(count):
        open_texts = [text for text in texts if not (text.tokens and text.tokens[-1] in stop_ids)]
        if open_texts:
            for text, logits in zip(open_texts, decoder.step(open_texts), strict=True):
                _take(text, logits)
                text.rows = decoder.embed(text.tokens[-1:])
        advance(1)
    return [_golden(prompt, rows, text) for rows, text in zip(audio, texts, strict=True)]


def _take(text: Decoding, logits: Tensor) -> None:
    """Append the likeliest token."""
    if text.first is None:
        text.first = logits.numpy().copy()
    best, second = logits.topk(2).values.tolist()
    text.tokens.append(int(logits.argmax()))
    text.margins.append(best - second)


def _golden(prompt: Sequence[int], audio: Tensor, text: Decoding) -> GoldenText:
    assert text.first is not None
    tokens, margins = np.array(text.tokens, np.int32), np.array(text.margins, np.float32)
    return GoldenText(audio.numpy(), np.array(prompt, np.int32), text.first, tokens, margins)
