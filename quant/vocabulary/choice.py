"""Which tokens are kept.

A text's tokens stay the same if all that byte-pair merging makes on the way to them is kept: the pairs that are merged
first among all are then there, and are merged first among the kept ones, too. What is made on the way to a token does
not hang on its neighbours, since no merge reaches across its ends. So each token is kept with its parts, their parts,
and so on down to bytes; and whatever needed a dropped token is spelled with more of the kept ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.errors import QuantizeError

# llama.cpp's fastest layouts of a matrix take rows in groups of 8 or 16, and GPUs 64: a head of another number of rows
# is slower, and rounds otherwise.
ROWS = 64


@dataclass(frozen=True)
class Merges:
    """How the tokens of a vocabulary are made of others."""

    parts: tuple[tuple[int, ...], ...]  # of each token: ids of both sides of each merge that makes it
    ranks: NDArray[np.int64]  # [tokens]: place of the first merge that makes it; behind all where there is none

    @classmethod
    def read(cls, tokens: Sequence[bytes], merges: Sequence[bytes]) -> Merges:
        """Of a GGUF's tokens and merges; merges of what is no token are left out."""
        ids = {token: index for index, token in enumerate(tokens)}
        parts: list[tuple[int, ...]] = [()] * len(tokens)
        ranks = np.full(len(tokens), len(merges), np.int64)
        for rank, merge in enumerate(merges):
            left, right, whole = (ids.get(text) for text in (*merge.split(b" ", 1), merge.replace(b" ", b"", 1)))
            if left is not None and right is not None and whole is not None:
                parts[whole] += (left, right)
                ranks[whole] = min(ranks[whole], rank)
        return cls(tuple(parts), ranks)


class Choice:
    """Tokens that are kept, with all that they are made of."""

    def __init__(self, merges: Merges) -> None:
        self._merges = merges
        self._kept = np.zeros(len(merges.parts), np.bool_)
        self.count = 0

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Of each token, whether it is kept."""
        return self._kept

    def add(self, token: int, limit: int | None = None) -> None:
        """Keep a token, unless there would be more than `limit`."""
        missing, left = set[int](), [token]
        while left:
            one = left.pop()
            if not self._kept[one] and one not in missing:
                missing.add(one)
                left += self._merges.parts[one]
        if limit is None or self.count + len(missing) <= limit:
            self._kept[list(missing)] = True
            self.count += len(missing)


def choose(
    merges: Merges, needed: Iterable[int], unused: NDArray[np.bool_], counts: NDArray[np.int64], size: int | None
) -> NDArray[np.bool_]:
    """Of each token, whether it is kept: bool [tokens].

    `needed` are kept in any case. Then go the tokens that occur, the most frequent first, and those of one frequency in
    the order of their merges, which is that of their frequency where the tokenizer was trained; those marked `unused`
    go last. `size` is how many are kept in all; None: all that occur. The number is rounded up to a multiple of 64.

    Raises:
        QuantizeError: `size` is less than what is needed, or all are kept.
    """
    choice, total = Choice(merges), len(merges.parts)
    for token in needed:
        choice.add(token)
    if size is not None and size < choice.count:
        raise QuantizeError(
            f"--vocab {size} is too few: bytes, control tokens, prompts and golden vectors need {choice.count}; give "
            "at least so many"
        )
    order = np.lexsort((np.arange(total), merges.ranks, -counts, unused)).tolist()
    if size is None:
        for token in order:
            if counts[token]:
                choice.add(token)
    limit = _rounded(max(size or 0, choice.count))
    if limit >= total:
        what = f"--vocab {size}" if size is not None else f"the corpus needs {choice.count} tokens, and that"
        raise QuantizeError(f"{what} leaves nothing to drop: the vocabulary has {total}; give fewer, or leave it out")
    for token in order:
        if choice.count == limit:
            break
        choice.add(token, limit)
    return choice.kept


def _rounded(count: int) -> int:
    return -(-count // ROWS) * ROWS
