"""The README.md of a bundle, a model card as the Hugging Face hub reads it: the facts that `model_card.md.jinja` words.

All figures come from the manifest, the files' sizes and the export's own measurements; nothing in it depends on the
machine or the time, so the same export writes the same card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dasheng_edge.export.variants.table import VARIANTS
from dasheng_edge.runtime.bundle.bundle import DECODER, ENCODER, FRONT_END, GOLDEN, PROJECTOR, required_files
from dasheng_edge.runtime.bundle.manifest import Manifest
from dasheng_edge.runtime.progress import StepReport

# What the header takes over from the checkpoint's own card, where that says it.
INHERITED = ("license", "license_name", "license_link", "language")
_CONTENTS = {
    FRONT_END: "waveform at 16 kHz to log-mel spectrogram",
    ENCODER: "a chunk of the spectrogram to patches",
    PROJECTOR: "patches to audio embeddings",
    DECODER: "text decoder with tokenizer and chat template",
    GOLDEN: "test vectors of the PyTorch reference",
}


def model_card(  # noqa: PLR0913  # what its sections tell
    manifest: Manifest,
    sizes: Mapping[str, int],
    steps: Sequence[StepReport],
    *,
    header: Mapping[str, object] | None = None,
    base_model: str | None = None,
    assumptions: Iterable[str] = (),
    warnings: Iterable[str] = (),
) -> str:
    """The text of README.md.

    `manifest` need not list its files yet: `sizes` holds the bytes of each but manifest.json and the card. `header`
    is the YAML header of the checkpoint's own card, `base_model` the checkpoint's name on the hub.
    """
    decoder, prompt = manifest.decoder, manifest.prompt
    templates = Environment(
        autoescape=False,  # noqa: S701  # it is Markdown, and texts go through the filters below
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    templates.filters.update(line=_line, cell=_cell, code=_code, quoted=partial(json.dumps, ensure_ascii=False))
    return templates.get_template("model_card.md.jinja").render(
        header=_header(manifest, header or {}, base_model),
        kind=VARIANTS[manifest.variant].title.format(arch=decoder.arch.capitalize() if decoder else ""),
        manifest=manifest, origin=manifest.provenance, tolerances=manifest.tolerances, spec=manifest.front_end,
        encoder=manifest.encoder, decoder=decoder, prompt=prompt, sampling=prompt.sampling if prompt else None,
        files=_files(manifest, sizes), sizes=sizes, steps=steps, base_model=base_model, assumptions=tuple(assumptions),
        warnings=tuple(warnings),
    )  # fmt: skip


def _header(manifest: Manifest, stated: Mapping[str, object], base_model: str | None) -> Mapping[str, object]:
    """What the hub reads; a string of JSON is one of YAML, too."""
    fields = {key: stated[key] for key in INHERITED if _is_text(stated.get(key))}
    if base_model:
        fields["base_model"] = base_model
    fields["library_name"] = "dasheng-edge"
    fields["pipeline_tag"] = "audio-text-to-text" if manifest.decoder else "feature-extraction"
    family = ["gguf", "midashenglm"] if manifest.decoder else []
    fields["tags"] = ["audio", "dasheng", "onnx", *family]
    return fields


def _is_text(value: object) -> bool:
    """A text, or a list of texts."""
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(entry, str) for entry in values)


def _files(manifest: Manifest, sizes: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """Name, content and precision of each file, in the order of the chain."""
    precision = {FRONT_END: "fp32", ENCODER: manifest.encoder.precision, PROJECTOR: "fp32"}
    if manifest.decoder:
        precision[DECODER] = manifest.decoder.precision
    required = [name for name in required_files(manifest) if name in sizes]
    rows = []
    for name in (*required, *sorted(sizes.keys() - set(required))):
        graph = name.removesuffix(".data")
        beside = f"weights of `{graph}`" if graph != name else ""
        rows.append((name, _CONTENTS.get(name, beside), precision.get(graph, "")))
    return rows


def _line(text: str) -> str:
    """On one line, as prose, a list item or a cell must be."""
    return " ".join(text.split())


def _cell(text: str) -> str:
    """As the cell of a table."""
    return _line(text).replace("|", r"\|")


def _code(text: str) -> str:
    """As code, whatever it holds; line ends and control characters as JSON writes them."""
    quoted = json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"')
    longest = max((len(run) for run in re.findall("`+", quoted)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if quoted.startswith("`") or quoted.endswith("`") else ""
    return f"{fence}{pad}{quoted}{pad}{fence}"
