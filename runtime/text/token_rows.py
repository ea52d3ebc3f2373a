"""Embeddings of tokens, so that they can be decoded in one batch with those of audio.

llama.cpp takes tokens or embeddings, not both in one batch, and each batch reads all weights: the few tokens behind the
audio would cost half as much as the audio. The embeddings are the first result that llama.cpp computes; then the
computation is stopped.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .context import Context
from .llama import Watch
from .model import Tokens

LOOKED_UP = "embd"  # llama.cpp's name of the embeddings of a batch's tokens
MAX_KEPT = 8
_CONTEXT = 256  # positions, all of which are dropped


class _Seen(Exception):  # noqa: N818  # no error: ends the computation
    pass


class OpenContext(Protocol):
    """Makes a context on the decoder's weights."""

    def __call__(self, n_ctx: int, *, watch: Watch) -> Context: ...


class TokenRows:
    """Looks up and keeps the embeddings of the last few texts, float32 [n, n_embd] each."""

    def __init__(self, open_context: OpenContext, n_embd: int) -> None:
        self._open_context, self._n_embd = open_context, n_embd
        self._kept = lru_cache(MAX_KEPT)(self._look_up)

    def of(self, tokens: Tokens) -> NDArray[np.float32] | None:
        """float32 [n, n_embd]; None if this llama.cpp does not show them, or if there are too many tokens."""
        return self._kept(tokens) if 0 < len(tokens) <= _CONTEXT else None

    def _look_up(self, tokens: Tokens) -> NDArray[np.float32] | None:
        seen: list[NDArray[np.float32]] = []

        def see(_: str, values: NDArray[np.float32]) -> None:
            seen.append(values.copy())
            raise _Seen

        watch = Watch(lambda name: name == LOOKED_UP, see)
        context = self._open_context(_CONTEXT, watch=watch)
        try:
            context.extend(np.array(tokens, np.int32), sequence=0, past=0, outputs=0)
        except _Seen:
            pass
        finally:
            context.close()
        return seen[0] if seen and seen[0].shape == (len(tokens), self._n_embd) else None
