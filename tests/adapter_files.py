"""Changing an adapter's files, for tests of what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Tensors = dict[str, Any]


def change_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    """Change the tensors of an adapter in place."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def change_config(folder: Path, **values: object) -> None:
    """Set fields of `adapter_config.json`."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
