"""Which files of a repository an export reads, and whether it holds a checkpoint or adapter at all.

What is not named here is never fetched: no Python code, since none from a repository is ever run, and no pickles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dasheng_edge.export.checkpoint.unsupported import plain_repository, refuse_other_models
from dasheng_edge.export.files.json_files import json_object
from dasheng_edge.export.files.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    INDEX,
    SHARD,
    SIDE_FILES,
    SWIFT_ENCODER,
    WEIGHTS,
    WHOLE_ENCODER,
    weights_file,
)
from dasheng_edge.export.variants.table import EXPORTABLE
from dasheng_edge.runtime.errors import (
    AdapterError,
    CheckpointFileError,
    CheckpointNotFoundError,
    CheckpointVariantError,
)

from .client import HubFile, Repository

PAPERS = re.compile(r"(README|LICEN[CS]E|NOTICE)(\.(md|txt))?", re.IGNORECASE)  # what it is, and on what terms
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

MAX_HEADER_BYTES = 100_000_000  # of a safetensors file, as the library has it
# Ends of names that all encoders of the family have; that of the convolution alone, vision models have, too.
_ENCODER_TENSORS = ("patch_embed.proj.weight", "time_pos_embed", "freq_pos_embed")

Read = Callable[[HubFile], bytes]  # the content of a small file
Head = Callable[[HubFile, int], bytes]  # the first bytes of a large one


def needed_files(repository: Repository, read: Read, head: Head) -> tuple[HubFile, ...]:
    """The files to fetch, small ones first; what decides about the weights is read before any are asked for.

    Raises:
        CheckpointVariantError: it is quantized, a GGUF or another model; what to pull instead is named.
        CheckpointNotFoundError: there are neither weights nor an adapter in safetensors.
        CheckpointFileError: config.json or the index is broken.
        AdapterError: the adapter is a part only of what was trained.
    """
    files = repository.files
    config: dict[str, Any] = {}
    if CONFIG in files:
        config = _json_object(repository, CONFIG, read(files[CONFIG]))
        refuse_other_models(Path(repository.name), config)
        _refuse_quantized(repository, config)
    papers = [name for name in files if PAPERS.fullmatch(name)]
    if (chosen := weights_file(repository.name, files, config)) is None:
        if ADAPTER_CONFIG not in files or ADAPTER_WEIGHTS not in files:
            raise _no_safetensors(repository)
        if SWIFT_ENCODER in files:
            raise AdapterError(
                f"{repository.name} holds {SWIFT_ENCODER}, {WHOLE_ENCODER}; ask its owner for the whole model, merged "
                "with `swift export --merge_lora true`"
            )
        names: Iterable[str] = (*papers, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
        return tuple(files[name] for name in names)
    if CONFIG not in files:
        raise CheckpointNotFoundError(f"{repository.name} is not a checkpoint: it holds weights and no {CONFIG}")
    _refuse_by_name(repository)
    side = [*papers, *(name for name in SIDE_FILES if name in files)]
    if chosen.endswith(".json"):
        weight_map = _weight_map(repository, chosen, read)
        weights = [chosen, *sorted(set(weight_map.values()))]
        _refuse_strangers(repository, config, weight_map)
    else:
        weights = [chosen]
        _refuse_strangers(repository, config, _names_in(repository, files[chosen], head))
    return tuple(files[name] for name in (*side, *weights))


def is_adapter(files: Iterable[HubFile]) -> bool:
    """Whether these are the files of an adapter rather than of a checkpoint."""
    return any(file.name == ADAPTER_WEIGHTS for file in files)


def _refuse_quantized(repository: Repository, config: Mapping[str, Any]) -> None:
    """Refuse what config.json says is quantized."""
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else quantization
        raise CheckpointVariantError(
            f"{repository.name} is a quantized checkpoint (quant_method {method!r}), which cannot be exported; pull "
            f"{plain_repository([repository.name])}; if its weights are plain all the same, as after an adapter of "
            "quantized training was merged, its owner has to remove quantization_config from config.json"
        )


def _refuse_by_name(repository: Repository) -> None:
    """Refuse what is called quantized, although its config.json does not say so."""
    plain = plain_repository([repository.name])
    if plain in EXPORTABLE:
        raise CheckpointVariantError(
            f"{repository.name} is a quantized checkpoint by its name, which cannot be exported; pull {plain}"
        )


def _refuse_strangers(repository: Repository, config: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse by the names of its tensors what is no model of the family; the export looks at their shapes, too."""
    names = tuple(names)

    def has(leaf: str) -> bool:
        return any(name == leaf or name.endswith(f".{leaf}") for name in names)

    kind = f"model_type {config.get('model_type')!r}, architectures {config.get('architectures')!r}"
    instead = f"pull one of {', '.join(EXPORTABLE)}"
    if absent := [leaf for leaf in _ENCODER_TENSORS if not has(leaf)]:
        raise CheckpointVariantError(
            f"{repository.name} is no model of the Dasheng family: it has no tensor {absent[0]}, under any prefix "
            f"({kind}); {instead}"
        )
    if has("patch_embed.weight") and not has("embed_tokens.weight"):
        raise CheckpointVariantError(
            f"{repository.name} is a DashengTokenizer without a language model, which is not supported; {instead}"
        )


def _no_safetensors(repository: Repository) -> CheckpointNotFoundError | CheckpointVariantError:
    """The error for a repository without weights that can be read, by what lies in it."""
    names = sorted(repository.files)
    if ggufs := [name for name in names if name.endswith(".gguf")]:
        return CheckpointVariantError(
            f"{repository.name} holds {ggufs[0]}, which is the result of an export and cannot be exported; pull "
            f"{plain_repository([repository.name])}"
        )
    pickles = [name for name in names if name.endswith(PICKLES)]
    other = [name for name in names if name.endswith(".safetensors")]
    others = f"{pickles[0]}, a pickle, which is not opened" if pickles else ", ".join(other[:3])
    instead = f", but {others}" if others else ""
    return CheckpointNotFoundError(
        f"{repository.name} has no {WEIGHTS}, {INDEX} or {ADAPTER_WEIGHTS} with its {ADAPTER_CONFIG}"
        f"{instead}; ask its owner for safetensors, or pull one of {', '.join(EXPORTABLE)}"
    )


def _names_in(repository: Repository, file: HubFile, head: Head) -> Iterable[str]:
    """Names of the tensors in a safetensors file, of which nothing but the header is read.

    The format: eight bytes for the length of a JSON header, the header, the data.
    """
    length = int.from_bytes(head(file, 8), "little")
    if not 0 < length <= min(file.bytes - 8, MAX_HEADER_BYTES):
        raise CheckpointFileError(
            f"{file.name} of {repository.name} is not safetensors: it begins with a length of {length:,} bytes for its "
            f"header, and the file has {file.bytes:,}; ask its owner"
        )
    return _json_object(repository, f"the header of {file.name}", head(file, 8 + length)[8:])


def _weight_map(repository: Repository, name: str, read: Read) -> dict[str, str]:
    """The file that the index says each tensor is in."""
    index = _json_object(repository, name, read(repository.files[name]))
    weight_map = index.get("weight_map")
    weight_map = weight_map if isinstance(weight_map, dict) else {}
    stated = list(weight_map.values())
    if not stated or not all(isinstance(shard, str) and SHARD.fullmatch(shard) for shard in stated):
        raise CheckpointFileError(
            f"{name} of {repository.name} names {stated[:3]}, expected safetensors files beside it; ask its owner"
        )
    if absent := [shard for shard in sorted(set(stated)) if shard not in repository.files]:
        raise CheckpointFileError(
            f"{repository.name} lacks {', '.join(absent[:3])}, which its {name} lists; the upload is not complete"
        )
    return weight_map


def _json_object(repository: Repository, name: str, content: bytes) -> dict[str, Any]:
    return json_object(content, f"{name} of {repository.name}", "ask its owner")
