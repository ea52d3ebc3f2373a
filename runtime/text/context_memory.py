"""What a llama.cpp context takes of memory, counted from the model before llama.cpp allocates it.

Upper bounds of what llama.cpp reserves, which tests hold against its own log. The names are those of its sources.
"""

from __future__ import annotations

import ctypes
from typing import Any

from .llama import llama_cpp_library

_KV_BITS = {0: 32.0, 1: 16.0, 8: 8.5, 2: 4.5}  # of a value in the cache, by enum ggml_type: F32, F16, Q8_0, Q4_0
_NODE_BYTES = 60 * 336 + 6 * 1024  # of a node that a graph may have: copies of its inputs, tensors, lists; mostly empty
_MIN_NODES = 1024  # of a graph
_LAYER_TENSORS = 12  # of Qwen2, whose matrices have biases; Qwen3 has 11
_STACK_BYTES = 8 << 20  # of a thread, by default


def context_bytes(model: Any, params: Any) -> tuple[int, int]:
    """Bytes that are filled, and bytes that are only set aside, with some `llama_context_params`."""
    llama, n_ctx = llama_cpp_library(), int(params.n_ctx)
    heads, kv_heads = llama.llama_model_n_head(model), llama.llama_model_n_head_kv(model)
    layers, width = llama.llama_model_n_layer(model), llama.llama_model_n_embd(model)
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    head = max(_number(model, "attention.key_length"), width // max(heads, 1))
    hidden = _number(model, "feed_forward_length") or 8 * width
    kept = n_ctx * layers * 2 * kv_heads * head * _KV_BITS[params.type_k] / 8
    logits = 4 * vocabulary * max(params.n_seq_max, params.n_outputs_max)
    rows, each = min(params.n_ubatch, n_ctx), n_ctx // params.n_seq_max
    activations = 4 * rows * (4 * width + 3 * hidden + 2 * (heads + 2 * kv_heads) * head)
    # The mask, and without flash attention the scores of all heads.
    scores = 4 * rows * each * (1 if params.flash_attn_type else heads + 1)
    nodes = max(_MIN_NODES, 8 * layers * _LAYER_TENSORS)
    threads = max(params.n_threads, params.n_threads_batch)
    aside = nodes * _NODE_BYTES + (threads - 1) * _STACK_BYTES
    return int(kept + 2 * logits + activations + scores), aside


def _number(model: Any, key: str) -> int:
    """A number in the metadata of the model's architecture; 0 if it is not stated."""
    llama, buffer = llama_cpp_library(), ctypes.create_string_buffer(64)
    llama.llama_model_meta_val_str(model, b"general.architecture", buffer, len(buffer))
    name = buffer.value + b"." + key.encode()
    size = llama.llama_model_meta_val_str(model, name, buffer, len(buffer))
    return int(buffer.value) if size > 0 and buffer.value.isdigit() else 0
