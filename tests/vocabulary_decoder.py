"""llama.cpp with a vocabulary and no model, to compare tokenizers."""

from __future__ import annotations

from pathlib import Path

import gguf
import llama_cpp

from dasheng_edge.export.gguf.metadata import add_vocabulary
from dasheng_edge.export.gguf.tokenizer import Vocabulary
from dasheng_edge.runtime.text.context import ContextOptions
from dasheng_edge.runtime.text.decoder import Decoder


def vocabulary_decoder(vocabulary: Vocabulary, path: Path) -> Decoder:
    """A decoder that can only tokenize, from a GGUF without tensors that is written to `path`."""
    writer = gguf.GGUFWriter(path, "qwen2")
    add_vocabulary(writer, vocabulary)
    sizes = {"context_length": 256, "embedding_length": 256, "feed_forward_length": 256, "block_count": 1}
    for name, size in {**sizes, "attention.head_count": 1, "attention.head_count_kv": 1}.items():
        writer.add_uint32(f"qwen2.{name}", size)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    return Decoder(model, ContextOptions(n_threads=1, n_threads_batch=1), n_ctx=256)
