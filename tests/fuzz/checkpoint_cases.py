"""Mutated checkpoints and adapters, read as an export does it, and now and then exported."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache, partial
from pathlib import Path

from dasheng_edge.export.adapter.merge import open_adapters
from dasheng_edge.export.bundle_export import export_bundle, read_text
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.options import ExportOptions
from tests.fixtures.tiny_checkpoint import write_tiny_adapter, write_tiny_checkpoint

from .bundle_cases import link
from .case import Case
from .mutate import Rng, mutated, mutated_json

EXPORTED = 0.05  # of those that open
READ_S, EXPORT_S = 20.0, 180.0  # an export alone takes five seconds; the machine may be busy


@cache
def _sources() -> tuple[Path, Path]:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-checkpoint-"))
    return write_tiny_checkpoint(folder / "checkpoint"), write_tiny_adapter(folder / "adapter")


def checkpoints(rng: Rng, folder: Path) -> Case:
    """One file of a checkpoint or of its adapter is mutated."""
    folders = [shutil.copytree(source, folder / source.name, copy_function=link) for source in _sources()]
    within = folders[int(rng.random() < 0.4)]
    files = sorted(path for path in within.iterdir() if path.is_file())
    path = files[int(rng.integers(len(files)))]
    content = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.85:
        changed = mutated_json(content.decode(), rng).encode("utf-8", "surrogatepass")
    else:
        changed = mutated(content, rng, header_bytes=_header_bytes(path, content))
    path.unlink()
    path.write_bytes(changed)
    options = ExportOptions(folders[0], folder / "out", adapters=(folders[1],))
    whole = rng.random() < EXPORTED
    return Case(f"{within.name}/{path.name}", partial(_read, options, whole=whole), EXPORT_S if whole else READ_S)


def _header_bytes(path: Path, content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else 4096


def _read(options: ExportOptions, *, whole: bool) -> str:
    checkpoint = open_checkpoint(options.checkpoint)
    open_adapters(options.adapters, checkpoint)
    read_text(checkpoint, options)
    if whole:
        export_bundle(options)
    return "exported" if whole else "opened"
