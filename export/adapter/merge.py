"""LoRA adapters, merged tensor by tensor and by blocks of rows, in float32, for encoder, projector and decoder.

What several adapters come to is peft's: each adapter is merged into what those before it left, as when peft's
merge_and_unload is called after each. `adapter.py` opens them, `lora.py` has the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dasheng_edge.export.checkpoint.checkpoint import Checkpoint
from dasheng_edge.export.checkpoint.sizes import EMBEDDING, HEAD
from dasheng_edge.export.files.tensor_files import Source, row_blocks
from dasheng_edge.runtime.deviation import relative_rms
from dasheng_edge.runtime.progress import Advance, no_advance

from .adapter import Adapter, open_adapter
from .lora import Adapted

MEASURED_BYTES = 4 << 20  # of each adapted matrix, when the merge is measured


@dataclass(frozen=True)
class MergedTensors:
    """The checkpoint's tensors with the adapters merged in, in order, computed when they are asked for."""

    checkpoint: Checkpoint
    adapters: tuple[Adapter, ...] = ()

    @cached_property
    def _weights(self) -> Mapping[str, Source | Adapted]:
        return _merge(self.checkpoint, self.adapters)

    @property
    def tied(self) -> bool:
        """Whether the head is still the embedding after the merge."""
        return self.checkpoint.tied and HEAD not in self._weights

    def names(self, prefix: str) -> list[str]:
        """Canonical names of the tensors under a prefix, in the checkpoint's order; an untied head is the last."""
        return [name for name in self._weights if name.startswith(prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._weights[name].shape

    def parameters(self, prefix: str) -> int:
        """Trained values under a prefix, as `Checkpoint.parameters` counts them; an untied head counts, too."""
        return sum(torch.Size(self.shape(name)).numel() for name in self.names(prefix) if ".running_" not in name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor, float32."""
        return self._weights[name].rows(start, stop, torch.float32)

    def exact_rows(self, name: str, start: int, stop: int) -> Tensor:
        """The same, computed in float64."""
        return self._weights[name].rows(start, stop, torch.float64)

    def adapted(self) -> list[str]:
        """Names of the matrices that an adapter adds to."""
        return sorted(name for name, weight in self._weights.items() if isinstance(weight, Adapted))

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, float32."""
        return self.rows(name, 0, self.shape(name)[0])

    def state_dict(self, prefix: str) -> dict[str, Tensor]:
        """All tensors under a prefix, without it, float32: "audio_encoder." and so on."""
        return {name.removeprefix(prefix): self.tensor(name) for name in self.names(prefix)}


def _merge(checkpoint: Checkpoint, adapters: Iterable[Adapter]) -> Mapping[str, Source | Adapted]:
    """Every tensor, as what peft makes of it.

    While the head is the embedding, peft has one tensor for both, too: what is merged into either changes both. A copy
    that modules_to_save puts in the place of either ends that.
    """
    weights: dict[str, Source | Adapted] = dict(checkpoint.sources)
    for adapter in adapters:
        tied = checkpoint.tied and HEAD not in weights
        shared = {HEAD: EMBEDDING} if tied else {}
        weights |= {shared.get(name, name): source for name, source in adapter.loaded.items()}
        for name, change in adapter.low_rank.items():
            target = shared.get(name, name)
            weights[target] = Adapted(weights[target], change)
        if tied and not adapter.keeps_tie and {EMBEDDING, HEAD} & adapter.replaced.keys():
            weights[HEAD], shared = weights[EMBEDDING], {}
        weights |= {shared.get(name, name): source for name, source in adapter.replaced.items()}
    return weights


def open_adapters(folders: Iterable[str | Path], checkpoint: Checkpoint) -> MergedTensors:
    """Open several adapters, to be merged in the order given."""
    return MergedTensors(checkpoint, tuple(open_adapter(folder, checkpoint) for folder in folders))


def measured_merge_error(merged: MergedTensors, advance: Advance = no_advance) -> float:
    """Largest relative RMS difference to the same merge in float64, over one block of each adapted matrix.

    NaN if a weight is NaN; `advance` is told of each matrix.
    """
    errors = [0.0]
    for name in merged.adapted():
        start, stop = next(row_blocks(merged.shape(name), MEASURED_BYTES))
        got, want = merged.rows(name, start, stop), merged.exact_rows(name, start, stop)
        errors.append(relative_rms(got.numpy(), want.numpy()))
        advance(1)
    return float(np.max(errors))  # unlike max(), propagates NaN
