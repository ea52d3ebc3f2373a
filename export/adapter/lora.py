"""The arithmetic of LoRA and DoRA, by blocks of rows: what adapters make of a stored matrix.

LoRA (arXiv 2106.09685) adds s * B @ A to a matrix W, with s = alpha / r, or alpha / sqrt(r) where rank-stabilised
(arXiv 2312.03732). DoRA (arXiv 2402.09353) then gives each row of the sum a trained length m:
W' = m * (W + s * B @ A) / ||W + s * B @ A||.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from dasheng_edge.export.files.tensor_files import Source, row_blocks

NORM_BYTES = 32 << 20  # of an embedding at a time, when the lengths of its columns are taken


@dataclass(frozen=True)
class LowRank:
    """What an adapter does to one matrix [out, in].

    A convolution's weight [out, ...] counts as the matrix of its rows. Of an embedding [vocabulary, dim] peft means
    the transpose: A.T @ B.T is added to it, and the magnitude is that of its columns.
    """

    a: Source  # [r, in]; [r, vocabulary] of an embedding
    b: Source  # [out, r]; [dim, r]
    scale: float
    magnitude: Source | None = None  # of DoRA: [out], or [1, out, 1, 1] of a convolution; [dim]
    embedding: bool = False

    def add(self, weight: Tensor, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the matrix with the product added, in their dtype; `weight` is used up."""
        a = self.a.rows(0, self.a.shape[0], weight.dtype).flatten(1)
        if self.embedding:
            b = self.b.rows(0, self.b.shape[0], weight.dtype)
            return weight.addmm_(a[:, start:stop].T, b.T, alpha=self.scale)
        b = self.b.rows(start, stop, weight.dtype).flatten(1)
        return weight.flatten(1).addmm_(b, a, alpha=self.scale).view(weight.shape)

    def sources(self) -> Iterator[tuple[str, Source]]:
        """All that is stored of it, by what peft calls it."""
        yield "lora_embedding_A" if self.embedding else "lora_A", self.a
        yield "lora_embedding_B" if self.embedding else "lora_B", self.b
        if self.magnitude is not None:
            yield "lora_magnitude_vector", self.magnitude


@dataclass(frozen=True)
class Adapted:
    """A matrix with one more adapter merged in."""

    before: Source | Adapted
    change: LowRank

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, which adapters leave alone."""
        return self.before.shape

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows [start, stop), computed in a floating-point type."""
        weight = self.change.add(self.before.rows(start, stop, dtype), start, stop)
        if (stored := self.change.magnitude) is None:
            return weight
        magnitude = stored.rows(0, stored.shape[0], dtype).flatten()
        if self.change.embedding:
            return weight.mul_(magnitude / self._column_norms.to(dtype))
        factor = magnitude[start:stop] / weight.flatten(1).norm(dim=1)
        return weight.mul_(factor.view(-1, *(1,) * (weight.ndim - 1)))

    @cached_property
    def _column_norms(self) -> Tensor:
        """Euclidean length of each column before the magnitude is applied: [dim], float64.

        Of all rows, so that it takes a pass through the embedding; once.
        """
        plain = Adapted(self.before, replace(self.change, magnitude=None))
        squares = torch.zeros(self.shape[1], dtype=torch.float64)
        for start, stop in row_blocks(self.shape, NORM_BYTES):
            squares += plain.rows(start, stop, torch.float64).square().sum(dim=0)
        return squares.sqrt()
