"""From any audio file to audio embeddings: reading, windows, front end, encoder, projector.

Imports `bundle` and `machine`; knows no llama.cpp.
"""
