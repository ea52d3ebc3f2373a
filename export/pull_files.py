"""Which files of a repository an export reads, and whether it holds a checkpoint or adapter at all.

What is not named here is never fetched: no Python code, since none from a repository is ever run, and no pickles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dasheng_edge.runtime.errors import (
    AdapterError,
    CheckpointFileError,
    CheckpointNotFoundError,
    CheckpointVariantError,
)

from .adapter import WEIGHTS as ADAPTER_WEIGHTS
from .adapter_config import BESIDE
from .adapter_config import CONFIG as ADAPTER_CONFIG
from .hub import HubFile, Repository
from .tensor_files import INDEX, WEIGHTS
from .unsupported import EXPORTABLE, plain_repository, refuse_other_models, refuse_quantized

CONFIG = "config.json"
CHECKPOINT_SIDE_FILES = (
    CONFIG, "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
PAPERS = re.compile(r"(README|LICEN[CS]E|NOTICE)(\.(md|txt))?", re.IGNORECASE)  # what it is, and on what terms
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SHARD = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)

Read = Callable[[HubFile], bytes]  # the content of a small file


def needed_files(repository: Repository, read: Read) -> tuple[HubFile, ...]:
    """The files to fetch, small ones first; what decides about the weights is read before any are asked for.

    Raises:
        CheckpointVariantError: it is quantized, a GGUF or another model; what to pull instead is named.
        CheckpointNotFoundError: there are neither weights nor an adapter in safetensors.
        CheckpointFileError: config.json or the index is broken.
        AdapterError: the adapter is a part only of what was trained.
    """
    files = repository.files
    if CONFIG in files:
        config = _json_object(repository, files[CONFIG], read)
        refuse_other_models(Path(repository.name), config)
        refuse_quantized(Path(repository.name), config, {}, [repository.name])
    papers = [name for name in files if PAPERS.fullmatch(name)]
    if INDEX not in files and WEIGHTS not in files:
        if ADAPTER_CONFIG not in files or ADAPTER_WEIGHTS not in files:
            raise _no_safetensors(repository)
        if BESIDE in files:
            raise AdapterError(
                f"{repository.name} holds {BESIDE}, an encoder that ms-swift trained in full beside the adapter, which "
                "is not supported; ask its owner for the whole model, merged with `swift export --merge_lora true`"
            )
        names: Iterable[str] = (*papers, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
        return tuple(files[name] for name in names)
    if CONFIG not in files:
        raise CheckpointNotFoundError(f"{repository.name} is not a checkpoint: it holds weights and no {CONFIG}")
    _refuse_by_name(repository)
    side = [*papers, *(name for name in CHECKPOINT_SIDE_FILES if name in files)]
    weights = (INDEX, *_shards(repository, read)) if INDEX in files else (WEIGHTS,)
    return tuple(files[name] for name in (*side, *weights))


def is_adapter(files: Iterable[HubFile]) -> bool:
    """Whether these are the files of an adapter rather than of a checkpoint."""
    return any(file.name == ADAPTER_WEIGHTS for file in files)


def _refuse_by_name(repository: Repository) -> None:
    """Refuse what is called quantized, although its config.json does not say so."""
    plain = plain_repository([repository.name])
    if plain in EXPORTABLE:
        raise CheckpointVariantError(
            f"{repository.name} is a quantized checkpoint by its name, which cannot be exported; pull {plain}"
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
    found = f"{pickles[0]}, a pickle, which is not opened" if pickles else ", ".join(other[:3]) or "no weights"
    return CheckpointNotFoundError(
        f"{repository.name} has no {WEIGHTS}, {INDEX} or {ADAPTER_WEIGHTS} with its {ADAPTER_CONFIG} (found {found}); "
        f"ask its owner for safetensors, or pull one of {', '.join(EXPORTABLE)}"
    )


def _shards(repository: Repository, read: Read) -> list[str]:
    """The files that the index lists."""
    index = _json_object(repository, repository.files[INDEX], read)
    weight_map = index.get("weight_map")
    stated = list(weight_map.values()) if isinstance(weight_map, Mapping) else []
    if not stated or not all(isinstance(shard, str) and _SHARD.fullmatch(shard) for shard in stated):
        raise CheckpointFileError(
            f"{INDEX} of {repository.name} names {stated[:3]}, expected safetensors files beside it; ask its owner"
        )
    shards = sorted(set(stated))
    if absent := [shard for shard in shards if shard not in repository.files]:
        raise CheckpointFileError(
            f"{repository.name} lacks {', '.join(absent[:3])}, which its {INDEX} lists; the upload is not complete"
        )
    return shards


def _json_object(repository: Repository, file: HubFile, read: Read) -> dict[str, Any]:
    try:
        content = json.loads(read(file))
    except ValueError as error:
        raise CheckpointFileError(f"{file.name} of {repository.name} is not JSON: {error}; ask its owner") from error
    if not isinstance(content, dict):
        raise CheckpointFileError(
            f"{file.name} of {repository.name} holds a {type(content).__name__}, expected a JSON object; ask its owner"
        )
    return content
