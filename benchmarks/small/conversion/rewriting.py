"""Exact rewritings of a decoder: into `qwen2`'s form, wider, and off the grid of its quantized file.

Each leaves what the decoder computes as it is, up to the rounding of float32.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.micro.training.micro_model import DecoderSpec
from benchmarks.small.conversion.llama_file import EMBEDDING, LlamaSizes

Tensors = dict[str, Tensor]  # by name behind `model.`

READERS = {  # matrices that read the residual stream, by the norm before them
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
LARGEST_SCALE = 2**0.5


def widened(tensors: Tensors, sizes: LlamaSizes, width: int) -> tuple[Tensors, DecoderSpec]:
    """The same function with a residual stream of `width`, of which the new columns are zero, as Qwen2.

    An RMSNorm divides by the root of the mean square over all columns, which new zeros make smaller: its weight takes
    the factor sqrt(hidden / width), its epsilon the square of it. New heads stand at the end of each group that shares
    keys; they are zero, and nothing reads them. Qwen2's biases are zero.

    Raises:
        ValueError: no number of heads of the old width in each group gives the new one.
    """
    group, rest = divmod(width, sizes.head_dim * sizes.kv_heads)
    if rest or width < sizes.hidden:
        step = sizes.head_dim * sizes.kv_heads
        raise ValueError(f"width {width} is no multiple of {step} from {sizes.hidden} on, so heads would not fill it.")
    share, more = sizes.hidden / width, width - sizes.hidden

    def with_heads(rows: Tensor) -> Tensor:
        groups = rows.reshape(sizes.kv_heads, -1, sizes.head_dim, rows.shape[1])
        return F.pad(groups, (0, 0, 0, 0, 0, group - groups.shape[1])).reshape(-1, rows.shape[1])

    out: Tensors = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 1:
            out[name] = F.pad(tensor * math.sqrt(share), (0, more), value=float(tensor.mean()) * math.sqrt(share))
        elif "q_proj" in name:
            out[name] = F.pad(with_heads(tensor), (0, more))
        elif "o_proj" in name:
            out[name] = F.pad(with_heads(tensor.T).T, (0, 0, 0, more))
        elif "down_proj" in name:
            out[name] = F.pad(tensor, (0, 0, 0, more))
        else:
            out[name] = F.pad(tensor, (0, more))
    for name in list(out):
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            out[name.replace(".weight", ".bias")] = torch.zeros(out[name].shape[0])
    spec = DecoderSpec(
        hidden_size=width,
        intermediate_size=sizes.feed_forward,
        num_hidden_layers=sizes.layers,
        num_attention_heads=group * sizes.kv_heads,
        num_key_value_heads=sizes.kv_heads,
        vocab_size=tensors[EMBEDDING].shape[0],
        max_position_embeddings=sizes.positions,
        rms_norm_eps=sizes.norm_eps * share,
        rope_theta=sizes.rope_theta,
        tie_word_embeddings=True,
    )
    return out, spec


def rescaled(tensors: Tensors, spec: DecoderSpec, seed: int) -> Tensors:
    """The same function with each column of each layer's matrices scaled by a factor of its own.

    Weights that come from a file of 4-bit blocks lie on its grid, and to quantize them again costs nothing: they would
    flatter every 4-bit type. A block holds 32 columns of a row, so that factors which differ from column to column
    leave no grid. Each factor is undone where the column's values come from: in the weight of the norm, in the rows of
    the value matrix (for all heads that share them), in the rows of `up_proj`.
    """
    rng, out = np.random.default_rng(seed), dict(tensors)
    group, head = spec.num_attention_heads // spec.num_key_value_heads, spec.hidden_size // spec.num_attention_heads

    def factors(count: int) -> Tensor:
        bound = math.log(LARGEST_SCALE)
        return torch.from_numpy(np.exp(rng.uniform(-bound, bound, count)).astype(np.float32))

    def scale(name: str, by: Tensor) -> None:
        out[name] = out[name] * by

    for layer in range(spec.num_hidden_layers):
        at = f"layers.{layer}."
        for norm, readers in READERS.items():
            by = factors(spec.hidden_size)
            scale(f"{at}{norm}.weight", 1 / by)
            for reader in readers:
                scale(f"{at}{reader}.weight", by)
        by = factors(spec.num_key_value_heads * head)
        scale(f"{at}self_attn.v_proj.weight", 1 / by[:, None])
        scale(f"{at}self_attn.v_proj.bias", 1 / by)
        scale(f"{at}self_attn.o_proj.weight", by.reshape(-1, 1, head).expand(-1, group, head).flatten())
        by = factors(spec.intermediate_size)
        scale(f"{at}mlp.up_proj.weight", 1 / by[:, None])
        scale(f"{at}mlp.down_proj.weight", by)
    return out


def with_rows(tensors: Tensors, rows: int) -> Tensors:
    """With new rows at the end of the embedding: the mean of the others, whose logit is never the largest."""
    old = tensors[EMBEDDING]
    return tensors | {EMBEDDING: torch.cat([old, old.mean(0, keepdim=True).expand(rows - len(old), -1)])}
