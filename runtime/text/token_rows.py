"""Embeddings of tokens, so that they can be decoded in one batch with those of audio.

llama.cpp takes tokens or embeddings, not both in one batch, and each batch reads all weights: the few tokens behind the
audio would cost half as much as the audio. The embeddings are rows of a table in the file, which are read there and
turned into floats by the function that llama.cpp itself looks them up with.
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.gguf.check import BLOCKS
from dasheng_edge.runtime.gguf.header import Header

from .llama import float_values
from .model import TABLE, Tokens

MAX_KEPT = 8
MAX_TOKENS = 256  # of a text; the rows of a 7B have 3.7 MB then


class TokenRows:
    """Looks up and keeps the embeddings of the last few texts, float32 [n, n_embd] each.

    The file stays open, so that they are those of the decoder that was loaded whatever takes its place.
    """

    def __init__(self, header: Header) -> None:
        table = header.tensors[TABLE]
        self._begin, self._kind = header.data + table.offset, table.kind
        self._width, self._tokens = table.shape
        values, size = BLOCKS[table.kind]
        self._row_bytes = self._width // values * size
        self._kept = lru_cache(MAX_KEPT)(self._look_up)
        self._file: int | None = None
        with suppress(OSError):  # too many files are open: tokens are decoded as such then
            self._file = os.open(header.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            self.close = weakref.finalize(self, os.close, self._file)

    def of(self, tokens: Tokens) -> NDArray[np.float32] | None:
        """float32 [n, n_embd]; None if they cannot be looked up, or if there are too many."""
        return self._kept(tokens) if 0 < len(tokens) <= MAX_TOKENS else None

    def _look_up(self, tokens: Tokens) -> NDArray[np.float32] | None:
        if self._file is None or not all(0 <= token < self._tokens for token in tokens):
            return None  # what is no token llama.cpp refuses
        stored, count = bytearray(), len(tokens)
        for token in tokens:
            os.lseek(self._file, self._begin + token * self._row_bytes, os.SEEK_SET)
            stored += os.read(self._file, self._row_bytes)
        if len(stored) < count * self._row_bytes:
            return None
        values = float_values(self._kind, bytes(stored), count * self._width)
        return None if values is None else values.reshape(count, self._width)
