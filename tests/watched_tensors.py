"""Merged tensors that notice how many of them somebody holds at once."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dasheng_edge.export.adapter.merge import MergedTensors


@dataclass(frozen=True)
class WatchedTensors(MergedTensors):
    """Reads as `MergedTensors` does."""

    held: dict[int, int] = field(default_factory=dict)  # bytes of each tensor that is still alive
    peak: list[int] = field(default_factory=lambda: [0])  # bytes, one entry

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """As `MergedTensors.rows`; the memory of what is returned is watched, whatever tensors share it."""
        memory = super().rows(name, start, stop).numpy().copy()
        self.held[id(memory)] = memory.nbytes
        self.peak[0] = max(self.peak[0], sum(self.held.values()))
        weakref.finalize(memory, self.held.pop, id(memory), None)
        return torch.from_numpy(memory)
