"""A manifest for people to read, as `dasheng-edge info` prints it."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from dasheng_edge.runtime.bundle.bundle import Manifest

_NO_DECODER = "none: this bundle embeds audio and does not caption it"


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
