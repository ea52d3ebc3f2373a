"""The decoder as GGUF: tensors, tokenizer, metadata, and its checks."""
