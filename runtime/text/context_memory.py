"""What a llama.cpp context takes of memory, counted from the model before llama.cpp allocates it.

Upper bounds of what llama.cpp reserves, which tests hold against its own log. The names are those of its sources.
"""

from __future__ import annotations

import ctypes
from typing import Any

from dasheng_edge.runtime.gguf.check import Sizes

from .llama import llama_cpp_library

KV_BITS = {0: 32.0, 1: 16.0, 8: 8.5, 2: 4.5}  # of a value in the cache, by enum ggml_type: F32, F16, Q8_0, Q4_0
_NODE_BYTES = 60 * 336 + 6 * 1024  # of a node that a graph may have: copies of its inputs, tensors, lists; mostly empty
_MIN_NODES = 1024  # of a graph
_LAYER_TENSORS = 12  # of Qwen2, whose matrices have biases; Qwen3 has 11
_STACK_BYTES = 8 << 20  # of a thread, by default


def context_bytes(model: Any, params: Any) -> tuple[int, int]:
    """Bytes that are filled, and bytes that are only set aside, with some `llama_context_params`."""
    n_ctx, sizes = int(params.n_ctx), _sizes(model)
    kept = kept_bytes(sizes, n_ctx, KV_BITS[params.type_k])
    logits = 4 * sizes.tokens * max(params.n_seq_max, params.n_outputs_max)
    rows, each = min(params.n_ubatch, n_ctx), n_ctx // params.n_seq_max
    computed = computed_bytes(sizes, rows, each, flash_attention=bool(params.flash_attn_type))
    nodes = max(_MIN_NODES, 8 * sizes.layers * _LAYER_TENSORS)
    threads = max(params.n_threads, params.n_threads_batch)
    aside = nodes * _NODE_BYTES + (threads - 1) * _STACK_BYTES
    return kept + 2 * logits + computed, aside


def kept_bytes(sizes: Sizes, positions: int, bits: float) -> int:
    """Keys and values of so many positions, of so many bits each."""
    return int(positions * sizes.layers * 2 * sizes.kv_heads * sizes.head_width * bits / 8)


def computed_bytes(sizes: Sizes, rows: int, positions: int, *, flash_attention: bool) -> int:
    """What is computed of so many rows at once, each of which sees so many positions, beside logits."""
    attention = 2 * (sizes.heads + 2 * sizes.kv_heads) * sizes.head_width
    # The mask, and without flash attention the scores of all heads.
    scores = positions * (1 if flash_attention else sizes.heads + 1)
    return 4 * rows * (4 * sizes.width + 3 * sizes.inner + attention + scores)


def _sizes(model: Any) -> Sizes:
    """Of a loaded model."""
    llama = llama_cpp_library()
    heads, width = llama.llama_model_n_head(model), llama.llama_model_n_embd(model)
    return Sizes(
        arch="",
        width=width,
        layers=llama.llama_model_n_layer(model),
        inner=_number(model, "feed_forward_length") or 8 * width,
        heads=heads,
        kv_heads=llama.llama_model_n_head_kv(model),
        head_width=max(_number(model, "attention.key_length"), width // max(heads, 1)),
        tokens=llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model)),
    )


def _number(model: Any, key: str) -> int:
    """A number in the metadata of the model's architecture; 0 if it is not stated."""
    llama, buffer = llama_cpp_library(), ctypes.create_string_buffer(64)
    llama.llama_model_meta_val_str(model, b"general.architecture", buffer, len(buffer))
    name = buffer.value + b"." + key.encode()
    size = llama.llama_model_meta_val_str(model, name, buffer, len(buffer))
    return int(buffer.value) if size > 0 and buffer.value.isdigit() else 0
