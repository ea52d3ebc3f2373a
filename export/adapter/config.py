"""`adapter_config.json`: what cannot be merged is refused by name, the rest is matched to modules as peft matches it.

The fields are those of peft's LoraConfig, as peft, ms-swift and mdl-toolkit save it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from dasheng_edge.export.files.json_files import StatedFields, checked, read_json
from dasheng_edge.export.files.names import ADAPTER_CONFIG, CONFIG, SWIFT_ENCODER, WHOLE_ENCODER
from dasheng_edge.export.files.pull_record import Origin
from dasheng_edge.runtime.errors import AdapterError

_Rank = Annotated[int, Field(gt=0, lt=1 << 31)]


def _fits_float32(value: float) -> float:
    if abs(value) > 3e38:
        raise ValueError("expected what float32 can hold, at most 3e+38")
    return value


_Float32 = Annotated[float, AfterValidator(_fits_float32)]


class LoraFacts(StatedFields):
    """`adapter_config.json`, the fields that decide the merge, and the base; the defaults are peft's."""

    base_model_name_or_path: Any = None  # a name on the hub or a path, if it is a text
    r: _Rank = 8
    lora_alpha: _Float32 = 8
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Float32] | None = None
    target_modules: str | list[str]
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    ensure_weight_tying: bool = False


# Where a training run has its adapters; ms-swift: v0-DATE/checkpoint-N.
_BELOW = (f"*/{ADAPTER_CONFIG}", f"*/*/{ADAPTER_CONFIG}")
# Names of folders that say nothing about the adapter in them; at most `_ABOVE` folders above it are looked at.
_GENERIC = re.compile(
    r"(adapters?|lora|default|best|last|final|model|outputs?|checkpoint(-\d+)?|v\d+-\d{8}-\d{6}|snapshots|[0-9a-f]{40}|\.*)"
)
_ABOVE = 3

# Read here, or without effect on the merge: how it was trained, on what, and where its first values came from.
_UNDERSTOOD = {
    *LoraFacts.model_fields, "peft_type", "init_lora_weights",
    "revision", "task_type", "inference_mode", "auto_mapping", "peft_version",
    "lora_dropout",
    "fan_in_fan_out",  # of Conv1D layers, which this model has none of: peft resets it for linear ones
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "megatron_core",
}  # fmt: skip
_PLAIN_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal", "mica")  # leave the base weights alone
_CONVERTIBLE = ("pissa", "olora", "corda", "lora_ga")  # change them, and peft can convert the adapter afterwards
_MERGE = "merge it with peft's merge_and_unload, save the whole model and export that"
# Where that would not help.
_REASONS = {
    "alora_invocation_tokens": "it acts on some tokens only, so that there are no merged weights; train plain LoRA",
    "arrow_config": "it chooses between adapters for each token, so that there are no merged weights; give one adapter",
    "layer_replication": "it repeats layers, which is another model; train on the layers as they are",
    "megatron_config": "its layers are Megatron's, split over devices; train or convert it with peft's own layers",
}


def check_folder(folder: Path) -> None:
    """Refuse a folder that is no adapter as peft, ms-swift or mdl-toolkit (`checkpoint-N`) writes it; opens no file.

    Raises:
        AdapterError: it says where the adapter is, if a subfolder or the parent holds it.
    """
    if folder.is_file():
        raise AdapterError(f"{folder} is a file, expected the folder with {ADAPTER_CONFIG}: give {folder.parent}")
    if (folder / ADAPTER_CONFIG).is_file():
        if (folder / SWIFT_ENCODER).exists():
            raise AdapterError(
                f"{folder} holds {SWIFT_ENCODER}, {WHOLE_ENCODER}; merge it with `swift export --merge_lora true` and "
                "export the whole model"
            )
        return
    if below := sorted((path.parent for depth in _BELOW for path in folder.glob(depth)), key=_training_step):
        raise AdapterError(
            f"{folder} is not an adapter but holds {len(below)}: give the one to merge; the newest is {below[-1]}"
        )
    if (folder / CONFIG).is_file():
        raise AdapterError(
            f"{folder} is not an adapter but a whole checkpoint (it has a config.json): if it was merged or trained "
            "in full, export it by itself, as the checkpoint"
        )
    raise AdapterError(f"{folder} is not an adapter: no {ADAPTER_CONFIG} in it; give the folder that peft saved")


def _training_step(folder: Path) -> tuple[list[int], str]:
    """What orders the adapters of training runs: the numbers in "v1-20250101-120000/checkpoint-300"."""
    return [int(number) for part in folder.parts[-2:] for number in re.findall(r"\d+", part)], folder.name


def read_config(folder: Path) -> LoraFacts:
    """The configuration of an adapter, after everything that is not LoRA or DoRA has been refused.

    Raises:
        AdapterError: it asks for what cannot be merged.
        CheckpointFileError: it cannot be read, or a field is not what it should be.
    """
    path = folder / ADAPTER_CONFIG
    config = read_json(path)
    if (kind := config.get("peft_type")) != "LORA":
        raise AdapterError(f"{path}: peft_type is {reprlib.repr(kind)}, only 'LORA' can be merged; {_MERGE}")
    for key, value in config.items():
        if key not in _UNDERSTOOD and not _is_default(key, value):
            fix = _REASONS.get(key, f"only LoRA and DoRA are; {_MERGE}")
            raise AdapterError(f"{path}: {key} = {reprlib.repr(value)} is not supported: {fix}")
    _check_initialisation(path, config.get("init_lora_weights", True))
    if config.get("target_modules") is None:
        raise AdapterError(f"{path}: target_modules is not stated, so that peft would load nothing; save it again")
    return checked(LoraFacts, str(path), config, "save the adapter again")


def adapter_name(folder: Path, origin: Origin | None) -> str:
    """What an adapter is called: on the hub, else by its folder or the nearest above whose name says anything."""
    if origin:
        return origin.repo.rpartition("/")[2]
    path = folder.resolve()
    homes = {os.environ.get("HOME"), os.environ.get("USERPROFILE")}  # which are called as their owners are
    names = [path.name, *(above.name for above in list(path.parents)[:_ABOVE] if str(above) not in homes)]
    return next((name.rpartition("--")[2] for name in names if not _GENERIC.fullmatch(name)), path.name)


def _check_initialisation(path: Path, init: object) -> None:
    if init in _PLAIN_INITIALISATIONS:
        return
    if str(init).lower().startswith(_CONVERTIBLE):
        fix = "convert the adapter with peft's save_pretrained(path_initial_model_for_weight_conversion=...)"
    elif init == "loftq":
        fix = "export the model that LoftQ wrote, with the adapter merged into it by peft's merge_and_unload"
    else:
        fix = f"expected one of {', '.join(map(repr, _PLAIN_INITIALISATIONS))}; {_MERGE}"
    raise AdapterError(
        f"{path}: init_lora_weights = {reprlib.repr(init)} changes the base weights, which the checkpoint does "
        f"not have; {fix}"
    )


def _is_default(key: str, value: object) -> bool:
    """Whether a field that is not understood here says the same as if it were absent."""
    from peft import LoraConfig

    if value is None or value is False or value in ({}, []):
        return True
    fields = {field.name: field for field in dataclasses.fields(LoraConfig)}
    return key in fields and fields[key].default == value


class Matcher:
    """Which modules an adapter changes, and how, by their stored names: peft's own matching.

    Raises:
        AdapterError: peft would not load such a configuration.
    """

    def __init__(self, folder: Path, facts: LoraFacts) -> None:
        from peft import LoraConfig

        self.facts, path = facts, folder / ADAPTER_CONFIG
        try:
            self._config = LoraConfig(
                target_modules=facts.target_modules,
                exclude_modules=facts.exclude_modules,
                layers_to_transform=facts.layers_to_transform,
                layers_pattern=facts.layers_pattern,
                modules_to_save=facts.modules_to_save,
            )
        except ValueError as error:
            raise AdapterError(f"{path}: peft refuses it: {error}; save the adapter again") from error

    def is_target(self, module: str) -> bool:
        """Whether peft would give a module LoRA matrices."""
        from peft.tuners.tuners_utils import check_target_module_exists

        config = self._config
        if config.target_modules == "all-linear":  # which peft writes out as names when it saves
            config = dataclasses.replace(config, target_modules=[module])
        return bool(check_target_module_exists(config, module))

    def is_saved(self, module: str) -> bool:
        """Whether `modules_to_save` names a module or one that it is in; peft compares the ends of names."""
        ends = tuple(self.facts.modules_to_save or ())
        return any(above.endswith(ends) for above in (module, *_modules_above(module)))

    def rank_and_scale(self, module: str) -> tuple[int, float]:
        """Rank r of a module, and its scale: alpha / r, or alpha / sqrt(r) where rank-stabilised."""
        from peft.utils.other import get_pattern_key

        ranks, alphas = self.facts.rank_pattern or {}, self.facts.alpha_pattern or {}
        rank = ranks.get(get_pattern_key(list(ranks), module), self.facts.r)
        alpha = alphas.get(get_pattern_key(list(alphas), module), self.facts.lora_alpha)
        return rank, alpha / (math.sqrt(rank) if self.facts.use_rslora else rank)


def _modules_above(module: str) -> list[str]:
    """The modules that a module is in: "a.b.c" -> "a", "a.b"."""
    parts = module.split(".")
    return [".".join(parts[:stop]) for stop in range(1, len(parts))]
