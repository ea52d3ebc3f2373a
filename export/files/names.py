"""What the files of checkpoints and adapters are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dasheng_edge.runtime.errors import CheckpointFileError

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"\w[\w.-]{,200}\.safetensors", re.ASCII)  # beside its index
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
TORCH_SUFFIXES = (".pt", ".pth")  # of the files that Dasheng's authors publish
GENERATION, PREPROCESSOR, PROCESSOR = "generation_config.json", "preprocessor_config.json", "processor_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL_TOKENS, ADDED_TOKENS = "special_tokens_map.json", "added_tokens.json"
TEMPLATE, LEGACY_TEMPLATE = "chat_template.jinja", "chat_template.json"
SIDE_FILES = (
    CONFIG, GENERATION, PREPROCESSOR, PROCESSOR, TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS,
    "vocab.json", "merges.txt", TEMPLATE, LEGACY_TEMPLATE,
)  # fmt: skip

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED_ADAPTER = "adapter_model.bin"
SWIFT_ENCODER = "vit.safetensors"  # ms-swift, "lora_llm": LoRA for the language model, all of the encoder
WHOLE_ENCODER = "an encoder that ms-swift trained in full beside the adapter, which is not supported"


def weights_file(where: object, names: Iterable[str], config: Mapping[str, Any]) -> str | None:
    """Of the files of a folder, the one that weights are read from, or the index of those; None if it has none.

    The order is that of transformers: what config.json names, else the single file, else the index.

    Raises:
        CheckpointFileError: config.json names something else than safetensors in the folder.
    """
    names = set(names)
    named = config.get("transformers_weights")
    if named is None:
        return next((name for name in (WEIGHTS, INDEX) if name in names), None)
    if not isinstance(named, str) or not SHARD.fullmatch(named.removesuffix(".index.json")) or named not in names:
        raise CheckpointFileError(
            f"{where}: config.json has transformers_weights {named!r}, expected safetensors beside it, or their index; "
            "correct it, or leave the field out"
        )
    return named
