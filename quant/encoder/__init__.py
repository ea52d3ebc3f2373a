"""Encoder and projector in fewer bits, each choice measured at the audio embeddings. Imports the runtime alone."""
