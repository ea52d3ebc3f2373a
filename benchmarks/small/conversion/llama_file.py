"""A GGUF file of the architecture `llama`, as SmolLM2's: sizes, tensors in transformers' order, vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import torch
from gguf import TokenType
from torch import Tensor

from dasheng_edge.quant.decoder.gguf_file import gguf_tensors

# transformers' name of a tensor of a layer -> llama.cpp's.
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
EMBEDDING, FINAL_NORM = "embed_tokens.weight", "norm.weight"


@dataclass(frozen=True)
class LlamaSizes:
    """Sizes of a llama decoder whose head is its embedding."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    feed_forward: int
    positions: int
    norm_eps: float
    rope_theta: float

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden // self.heads


@dataclass(frozen=True)
class LlamaVocabulary:
    """Tokens by id, those of them that are control tokens, and the merges of a byte-level BPE."""

    tokens: tuple[str, ...]
    control: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class LlamaFile:
    """What the file holds. `tensors`: float32, by transformers' name behind `model.`."""

    sizes: LlamaSizes
    tensors: dict[str, Tensor]
    vocabulary: LlamaVocabulary


def read_llama(path: Path) -> LlamaFile:
    """Reads and dequantizes a whole file; 135 M parameters take 0.6 GB.

    Raises:
        ValueError: it is of another architecture, or its head is no embedding.
    """
    reader = gguf.GGUFReader(path)
    facts = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    architecture = facts["general.architecture"]
    if architecture != "llama":
        raise ValueError(
            f"{path} holds a decoder of architecture {architecture!r}: expected 'llama'; give another file."
        )
    sizes = LlamaSizes(
        layers=facts["llama.block_count"],
        hidden=facts["llama.embedding_length"],
        heads=facts["llama.attention.head_count"],
        kv_heads=facts["llama.attention.head_count_kv"],
        feed_forward=facts["llama.feed_forward_length"],
        positions=facts["llama.context_length"],
        norm_eps=facts["llama.attention.layer_norm_rms_epsilon"],
        rope_theta=facts["llama.rope.freq_base"],
    )
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    control = tuple(token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL)
    merges = tuple(_pair(merge) for merge in facts["tokenizer.ggml.merges"])
    return LlamaFile(sizes, _tensors(path, sizes), LlamaVocabulary(tuple(tokens), control, merges))


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _tensors(path: Path, sizes: LlamaSizes) -> dict[str, Tensor]:
    stored = gguf_tensors(path)
    if "output.weight" in stored:
        raise ValueError(f"{path} has a head of its own: expected one whose head is its embedding; give another file.")

    def read(name: str) -> Tensor:
        return torch.from_numpy(stored[name].rows(0, stored[name].shape[0]).copy())

    out = {EMBEDDING: read("token_embd.weight"), FINAL_NORM: read("output_norm.weight")}
    for layer in range(sizes.layers):
        for name, theirs in LAYER_NAMES.items():
            out[f"layers.{layer}.{name}.weight"] = read(f"blk.{layer}.{theirs}.weight")
        for name, heads in (("q_proj", sizes.heads), ("k_proj", sizes.kv_heads)):
            key = f"layers.{layer}.self_attn.{name}.weight"
            out[key] = _halves(out[key], heads)
    return out


def _halves(rows: Tensor, heads: int) -> Tensor:
    """Rows whose neighbours rotate together, as llama.cpp stores them -> halves of a head, as in transformers."""
    width = rows.shape[0] // heads
    return rows.reshape(heads, width // 2, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
