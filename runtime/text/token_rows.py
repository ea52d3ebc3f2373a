"""Embeddings of tokens, so that they can be decoded in one batch with those of audio.

llama.cpp takes tokens or embeddings, not both at a time, and each batch reads all weights: the few tokens behind the
audio would cost as much as half of it. The embeddings are what llama.cpp itself looks up: its first result, after
which the computation is stopped.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .context import BATCH
from .llama import Watch
from .model import Tokens

if TYPE_CHECKING:
    from .decoder import Decoder

LOOKED_UP = "embd"  # llama.cpp's name of the embeddings of a batch's tokens
MOST_KEPT = 8
_CONTEXT = 256  # positions, of which none is kept


class _Seen(Exception):  # noqa: N818  # no error: ends the computation
    pass


class TokenRows:
    """Looks up and keeps the embeddings of the last few texts."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._kept: OrderedDict[Tokens, NDArray[np.float32]] = OrderedDict()

    def of(self, tokens: Tokens) -> NDArray[np.float32] | None:
        """float32 [n, n_embd]; None where this llama.cpp does not show them, or they are too many."""
        if not 0 < len(tokens) <= _CONTEXT:
            return None
        if tokens not in self._kept:
            rows = self._look_up(tokens)
            if rows is None:
                return None
            self._kept[tokens] = rows
        self._kept.move_to_end(tokens)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return self._kept[tokens]

    def _look_up(self, tokens: Tokens) -> NDArray[np.float32] | None:
        seen: list[NDArray[np.float32]] = []

        def see(_: str, values: NDArray[np.float32]) -> None:
            seen.append(values.copy())
            raise _Seen

        watch = Watch(lambda name: name == LOOKED_UP, see)
        context = self._decoder.new_context(_CONTEXT, self._decoder.options, watch)
        count = len(tokens)
        assert count <= BATCH
        try:
            context.decode(
                np.array(tokens, np.int32), np.arange(count, dtype=np.int32), np.zeros(count, np.int32),
                np.zeros(count, np.int8),
            )  # fmt: skip
        except _Seen:
            pass
        finally:
            context.close()
        if not seen or seen[0].shape != (count, self._decoder.n_embd):
            return None
        return seen[0]
