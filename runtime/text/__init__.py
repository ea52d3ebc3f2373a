"""From tokens and audio embeddings to text: llama.cpp, contexts, sampling, cached prefixes. Knows no audio file."""
