"""`dasheng-edge info` and `upgrade`: what a manifest says, for people to read, and what an older one lacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel

from .options import BundleArgument, JsonOption, OverwriteOption, print_json, print_table, show

if TYPE_CHECKING:
    from dasheng_edge.runtime.bundle.manifest import Manifest

_NO_DECODER = "none: this bundle embeds audio and does not caption it"


def info(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Show what a bundle is: model, precision, sizes, where it comes from."""
    from dasheng_edge.runtime.bundle.bundle import Bundle

    manifest = Bundle.open(bundle, check_sha256=False).manifest
    if as_json:
        print_json(manifest)
        return
    from rich.table import Table

    # Without padding at the edges, a SHA-256 fits into 80 columns.
    table = Table(title=f"{manifest.name} ({manifest.variant})", show_header=False, pad_edge=False)
    for name, text in manifest_sections(manifest):
        table.add_row(name, text, end_section=True)
    sizes = {**{name: facts.bytes for name, facts in manifest.files.items()}, "total": manifest.total_bytes}
    table.add_row("files", "\n".join(f"{name}: {size / 1e6:,.3f} MB" for name, size in sizes.items()))
    print_table(table)


def upgrade(
    bundle: BundleArgument,
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Write the newer bundle here, and leave the older one.")
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add what newer bundles say to an older one, for programs that are not ours; what it computes stays the same.

    Adds prompts as token ids, stop ids, sampler steps and sizes to the manifest, and golden.safetensors. No other file
    changes. The bundle is replaced in one step, or left as it is.
    """
    from dasheng_edge.runtime.program import upgrade_bundle

    report = upgrade_bundle(bundle, out, overwrite=overwrite)
    folder, newest = report.bundle.folder, report.bundle.manifest.schema_version
    if as_json:
        print_json({
            "bundle": str(folder), "added": report.added, "schema_version_before": report.schema_before,
            "schema_version": newest,
        })  # fmt: skip
    elif report.added:
        show(f"{folder}: added {', '.join(report.added)}; it was of schema version {report.schema_before}")
    else:
        show(f"{folder}: nothing to do, it has all that schema version {newest} brought; nothing was written")


def manifest_sections(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Each part of the model, and a line for each thing that the manifest says about it."""
    yield "encoder", _lines(manifest.encoder)
    if manifest.projector_parameters is not None:  # bundles of schema 1 do not count them
        yield "projector", f"parameters: {_plain(manifest.projector_parameters)}"
    yield "decoder", _lines(manifest.decoder) if manifest.decoder else _NO_DECODER
    if manifest.prompt:
        notes = [f"note: {note}" for note in manifest.prompt.notes]  # sentences, which hold commas
        yield "prompt", "\n".join([_lines(manifest.prompt, but="notes"), *notes])
    if manifest.quantization:
        yield "quantized", _lines(manifest.quantization)
    yield "tolerances", _lines(manifest.tolerances)
    yield "provenance", _lines(manifest.provenance)


def _lines(part: BaseModel, but: str = "") -> str:
    values: dict[str, object] = part.model_dump(exclude={but}, exclude_none=True)
    return "\n".join(f"{key}: {_plain(value)}" for key, value in values.items() if value != {})


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
