"""What results are written as: formats of captions, files of embeddings. Imports everything but `speed` and `cli`."""
