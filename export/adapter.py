"""LoRA adapters, merged tensor by tensor: W + s * B @ A, in float32, for encoder, projector and decoder.

Which matrices are changed is told by the tensors in the adapter's file; the configuration gives the scale
s = alpha / r (alpha / sqrt(r) for rank-stabilised LoRA, arXiv 2312.03732), which may differ by module.
LoRA: arXiv 2106.09685; the file layout is peft's. Whatever is not plain LoRA is refused by name.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from dasheng_edge.runtime.bundle import sha256_of
from dasheng_edge.runtime.errors import AdapterError, CheckpointFileError

from .checkpoint import Checkpoint, Source, row_blocks, tensors_in
from .model_config import LoraFacts, checked

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # peft's, before the checkpoint's own names
MEASURED_BYTES = 4 << 20  # of each adapted matrix, when the merge is measured

# Read here, or without effect on what is stored: how it was trained and which modules were chosen.
_UNDERSTOOD = {
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "modules_to_save",
    "init_lora_weights", "bias",
    "base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "peft_version",
    "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "fan_in_fan_out",  # for Conv1D layers, which this model has none of; peft ignores it on linear layers
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config", "megatron_core",
    "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
# Initialisations that leave the base weights alone; PiSSA, OLoRA, LoftQ, CorDA ... change them.
_PLAIN_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LowRank:
    """One adapted matrix: s * B @ A is added to it."""

    a: Source  # [r, in]
    b: Source  # [out, r]
    scale: float

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of s * B @ A, float32."""
        return self.scale * (self.b.rows(start, stop) @ self.a.rows(0, self.a.shape[0]))


@dataclass(frozen=True)
class Adapter:
    """An opened adapter: what it adds to and what it replaces, by the checkpoint's names."""

    name: str
    sha256: str
    low_rank: Mapping[str, LowRank]
    replaced: Mapping[str, Source]  # modules_to_save


@dataclass(frozen=True)
class MergedTensors:
    """The checkpoint's tensors with the adapters merged in, in order, computed when they are asked for."""

    checkpoint: Checkpoint
    adapters: tuple[Adapter, ...] = ()

    @property
    def tied(self) -> bool:
        """Whether the head is still the embedding after the merge."""
        decoder = self.checkpoint.decoder
        return decoder is not None and decoder.tied

    def names(self, prefix: str) -> list[str]:
        """Canonical names of the tensors under a prefix, in the checkpoint's order."""
        return [name for name in self.checkpoint.sources if name.startswith(prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.checkpoint.sources[name].shape

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor, float32."""
        weight = self.checkpoint.rows(name, start, stop)
        for adapter in self.adapters:
            if name in adapter.replaced:
                weight = adapter.replaced[name].rows(start, stop)
            elif name in adapter.low_rank:
                weight += adapter.low_rank[name].rows(start, stop)
        return weight

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, float32."""
        return self.rows(name, 0, self.shape(name)[0])

    def state_dict(self, prefix: str) -> dict[str, Tensor]:
        """All tensors under a prefix, without it, float32: "audio_encoder." and so on."""
        return {name.removeprefix(prefix): self.tensor(name) for name in self.names(prefix)}


def open_adapter(folder: str | Path, checkpoint: Checkpoint) -> Adapter:
    """Open an adapter in peft's layout and check that it fits the checkpoint; reads no weights.

    Raises:
        AdapterError: there is none, it is not plain LoRA, or it was made for another model.
    """
    folder = Path(folder)
    config = _read_config(folder)
    tensors = _read_header(folder)
    targets: dict[str, dict[str, Source]] = {}
    replaced: dict[str, Source] = {}
    for stored, source in tensors.items():
        name = stored.removeprefix(PREFIX)
        if name == stored:
            raise AdapterError(f"{folder}: tensor {stored} does not begin with {PREFIX}; save the adapter with peft")
        for factor in ("A", "B"):
            if name.endswith(f".lora_{factor}.weight"):
                module = name.removesuffix(f".lora_{factor}.weight")
                targets.setdefault(f"{module}.weight", {})[factor] = source
                break
        else:
            replaced[name] = _check_replaced(folder, name, source, config, checkpoint)
    low_rank = {name: _low_rank(folder, name, pair, config, checkpoint) for name, pair in targets.items()}
    if not low_rank and not replaced:
        raise AdapterError(f"{folder / WEIGHTS} holds no tensor, expected lora_A and lora_B matrices")
    return Adapter(folder.resolve().name, sha256_of(folder / WEIGHTS), low_rank, replaced)


def open_adapters(folders: Iterable[str | Path], checkpoint: Checkpoint) -> MergedTensors:
    """Open several adapters, to be merged in the order given."""
    return MergedTensors(checkpoint, tuple(open_adapter(folder, checkpoint) for folder in folders))


def _read_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json`, after everything that is not plain LoRA has been refused."""
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterError(f"{folder} is not an adapter: no {CONFIG} in it; give the folder that peft saved")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"cannot read {path}: {error}; save the adapter again") from error
    config: dict[str, Any] = content if isinstance(content, dict) else {}
    if (kind := config.get("peft_type")) != "LORA":
        raise AdapterError(f"{path}: peft_type is {kind!r}, only 'LORA' can be merged")
    for key, value in config.items():
        if key not in _UNDERSTOOD and not _is_default(key, value):
            raise AdapterError(
                f"{path}: {key} = {value!r} is not supported, only plain LoRA is; merge it with peft's "
                "merge_and_unload, save the whole model and export that"
            )
    if (init := config.get("init_lora_weights", True)) not in _PLAIN_INITIALISATIONS:
        raise AdapterError(
            f"{path}: init_lora_weights = {init!r} changes the base weights, which the checkpoint does not have; "
            "convert the adapter with peft's path_initial_model_for_weight_conversion"
        )
    if (bias := config.get("bias", "none")) != "none":
        raise AdapterError(f"{path}: bias = {bias!r} (trained biases) is not supported, expected 'none'")
    try:
        checked(LoraFacts, str(path), config, "save the adapter again")
    except CheckpointFileError as error:
        raise AdapterError(str(error)) from error
    return config


def _is_default(key: str, value: object) -> bool:
    """Whether a field that is not understood here says the same as if it were absent."""
    from peft import LoraConfig

    if value is None or value is False or value in ({}, []):
        return True
    fields = {field.name: field for field in dataclasses.fields(LoraConfig)}
    return key in fields and fields[key].default == value


def _read_header(folder: Path) -> dict[str, Source]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        found = f"only {pickles[0]}, a pickle, which is not opened" if pickles else "none"
        raise AdapterError(f"{folder} has no {WEIGHTS} (found {found}); save it with safe_serialization=True")
    try:
        return tensors_in(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is truncated or not safetensors ({error}); copy it again") from error


def _low_rank(
    folder: Path, name: str, pair: Mapping[str, Source], config: Mapping[str, Any], checkpoint: Checkpoint
) -> LowRank:
    """Check one pair of factors against the matrix that it changes."""
    module = name.removesuffix(".weight")
    if name not in checkpoint.sources:
        raise AdapterError(
            f"{folder} was made for another model: it changes {module}, which {checkpoint.folder.name} has not; "
            "give the checkpoint that it was trained on"
        )
    if lacking := {"A", "B"} - pair.keys():
        raise AdapterError(f"{folder}: {module} has no lora_{lacking.pop()}.weight; save the adapter again")
    a, b, shape = pair["A"], pair["B"], checkpoint.sources[name].shape
    rank, alpha = _rank_and_alpha(module, config)
    expected = ((rank, shape[-1]), (shape[0], rank))
    if len(shape) != 2 or (a.shape, b.shape) != expected:
        raise AdapterError(
            f"{folder} does not fit {checkpoint.folder.name}: {module} has lora_A {a.shape} and lora_B {b.shape}, "
            f"expected {expected[0]} and {expected[1]} for rank {rank} and a weight of {shape}; give the checkpoint "
            "that it was trained on"
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(a, b, scale)


def _rank_and_alpha(module: str, config: Mapping[str, Any]) -> tuple[int, float]:
    """Rank and alpha of a module: the patterns' entry that peft would match, else the common values."""
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    return (
        int(_by_pattern(config.get("rank_pattern"), module, rank)),
        float(_by_pattern(config.get("alpha_pattern"), module, alpha)),
    )


def _by_pattern(values: Mapping[str, float] | None, module: str, common: float) -> float:
    if not values:
        return common
    from peft.utils.other import get_pattern_key

    return values.get(str(get_pattern_key(list(values), module)), common)


def _check_replaced(
    folder: Path, name: str, source: Source, config: Mapping[str, Any], checkpoint: Checkpoint
) -> Source:
    """A whole tensor may only stand in an adapter if `modules_to_save` names its module.

    peft also stores the two ends of the vocabulary whenever it suspects that they were resized.
    """
    saved = (*(config.get("modules_to_save") or ()), "embed_tokens", "lm_head")
    module = name.rpartition(".")[0]
    if not any(module == entry or module.endswith(f".{entry}") for entry in saved):
        raise AdapterError(
            f"{folder}: tensor {name} is neither lora_A, lora_B nor of a module in modules_to_save "
            f"({config.get('modules_to_save')}); merge it with peft's merge_and_unload and export the whole model"
        )
    if name not in checkpoint.sources:
        raise AdapterError(
            f"{folder} was made for another model: it replaces {name}, which {checkpoint.folder.name} has not"
        )
    if source.shape != checkpoint.sources[name].shape:
        raise AdapterError(
            f"{folder} does not fit {checkpoint.folder.name}: {name} has shape {source.shape}, "
            f"expected {checkpoint.sources[name].shape}; give the checkpoint that it was trained on"
        )
    return source


def adapted_matrices(merged: MergedTensors) -> list[str]:
    """Names of the matrices that an adapter adds to."""
    return sorted({name for adapter in merged.adapters for name in adapter.low_rank})


def check_finite(adapter: Adapter) -> None:
    """Read every tensor of an adapter once, a block of rows at a time.

    Raises:
        AdapterError: one holds NaN or infinity.
    """
    tensors = [(f"{name} (lora_A)", pair.a) for name, pair in adapter.low_rank.items()]
    tensors += [(f"{name} (lora_B)", pair.b) for name, pair in adapter.low_rank.items()]
    for name, source in (*tensors, *adapter.replaced.items()):
        for start, stop in row_blocks(source.shape):
            if not torch.isfinite(source.rows(start, stop)).all():
                raise AdapterError(
                    f"adapter {adapter.name} holds NaN or infinity in {name}, expected finite weights; copy it again, "
                    "or take an earlier step of its training"
                )


def measured_merge_error(merged: MergedTensors, advance: Callable[[int], None] = lambda _: None) -> float:
    """Largest relative RMS difference to the same sum in float64, over one block of each adapted matrix.

    NaN where there is one; `advance` is told of each matrix.
    """
    errors = [0.0]
    for name in adapted_matrices(merged):
        start, stop = next(row_blocks(merged.shape(name), MEASURED_BYTES))
        want = merged.checkpoint.rows(name, start, stop).double()
        for adapter in merged.adapters:
            if name in adapter.replaced:
                want = adapter.replaced[name].rows(start, stop).double()
            elif pair := adapter.low_rank.get(name):
                factor = pair.a.rows(0, pair.a.shape[0]).double()
                want += pair.scale * (pair.b.rows(start, stop).double() @ factor)
        difference = merged.rows(name, start, stop).double() - want
        scale = want.square().mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
        errors.append(float(difference.square().mean().sqrt() / scale))
        advance(1)
    return float(np.max(errors))  # unlike max(), propagates NaN
