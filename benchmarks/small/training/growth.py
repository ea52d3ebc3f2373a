"""Micro's trained encoder inside a wider one that computes the same: training goes on from there.

A residual stream that is written with mean zero keeps its LayerNorms when zeros are put beside it, if their weights
take the factor sqrt(old / new), by which the deviation over all columns is smaller. What is added (columns, heads,
hidden values) starts without effect: what writes it, or what reads it, is zero, and the other is random.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dasheng_edge.export.variants.modules import ChunkedEncoder

WRITERS = ("patch_embed.proj", "attn.proj", "mlp.fc2")  # whose output is added to the residual stream
POSITIONS = ("time_pos_embed", "freq_pos_embed")


@torch.no_grad()
def grow(small: ChunkedEncoder, trained: ChunkedEncoder) -> None:
    """Puts the weights of `trained` into `small`: as deep, at least as wide, with heads of the same width.

    Raises:
        ValueError: the shapes do not allow it.
    """
    old, new = trained.spec, small.spec
    head = old.embed_dim // old.num_heads
    if new.depth != old.depth or new.embed_dim // new.num_heads != head or new.embed_dim < old.embed_dim:
        raise ValueError(
            f"an encoder of {old} does not fit into one of {new}: expected the same depth and width of heads."
        )
    share = old.embed_dim / new.embed_dim
    into, values = small.state_dict(), trained.state_dict()
    for name, target in into.items():
        value, layer = values[name], name.rpartition(".")[0]
        if layer.endswith(WRITERS):
            value = value - value.mean(0, keepdim=True)
            target.zero_()
        elif name in POSITIONS:
            value = value - value.mean(1, keepdim=True)
            target.zero_()
        elif ".norm" in f".{layer}":
            value = value * math.sqrt(share) if name.endswith("weight") else value
            target.fill_(math.sqrt(share) if name.endswith("weight") else 0.0)
        if layer.endswith("attn.qkv"):
            for rows, part in zip(target.chunk(3), value.chunk(3), strict=True):
                _put(rows, part)
        else:
            _put(target, value)


def _put(target: Tensor, value: Tensor) -> None:
    """The leading part of each dimension."""
    if value.ndim == 0:
        target.copy_(value)
    else:
        target[tuple(slice(size) for size in value.shape)] = value
