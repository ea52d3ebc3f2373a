"""What the files of checkpoints and adapters are called."""

from __future__ import annotations

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
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
SWIFT_ENCODER = "vit.safetensors"  # ms-swift, "lora_llm": LoRA for the language model, all of the encoder
WHOLE_ENCODER = "an encoder that ms-swift trained in full beside the adapter, which is not supported"
