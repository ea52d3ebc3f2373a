"""Changing an adapter's files, for tests of what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dasheng_edge.runtime.bundle.bundle import Variant

Tensors = dict[str, Any]
HEAD = "base_model.model.decoder.lm_head.weight"


def change_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    """Change the tensors of an adapter in place."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def change_config(folder: Path, **values: object) -> None:
    """Set fields of `adapter_config.json`."""
    state(folder, "adapter_config.json", **values)


def state(folder: Path, file: str, **fields: object) -> None:
    """Set fields of a JSON file of an adapter or a checkpoint, which need not be there."""
    path = folder / file
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | fields), encoding="utf-8")


def write_free_head(folder: Path, variant: Variant) -> Path:
    """Write an adapter of the tiny checkpoint that holds a head of its own, and return the folder."""
    import torch

    from tests.tiny_checkpoint import tiny_shapes, write_tiny_adapter

    write_tiny_adapter(folder, variant=variant, target_modules=["qkv"])
    rows, dim = next(shape for name, shape in tiny_shapes(variant).items() if name.endswith("embed_tokens.weight"))
    head = torch.randn(rows, dim, generator=torch.Generator().manual_seed(2)) / dim**0.5
    change_tensors(folder, lambda tensors: tensors.update({HEAD: head}))
    change_config(folder, modules_to_save=["lm_head"])
    return folder
