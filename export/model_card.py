"""The bundle's README.md: a model card as the Hugging Face hub reads it, written from the manifest.

All figures come from the manifest, the files' sizes and the export's own measurements; nothing in it depends on the
machine or the time, so the same export writes the same card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from dasheng_edge.export.variants.table import VARIANTS
from dasheng_edge.runtime.bundle.bundle import DECODER, ENCODER, FRONT_END, GOLDEN, PROJECTOR, required_files
from dasheng_edge.runtime.bundle.manifest import DecoderFacts, Manifest, PromptFacts

if TYPE_CHECKING:
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
# Seam -> field of the manifest's tolerances, unit
_SEAMS = {
    "log-mel": ("log_mel_db", "dB"),
    "acoustic mel": ("acoustic_nepers", "nepers"),
    "patches": ("patches_relative", "relative RMS"),
    "embeddings": ("embeddings_relative", "relative RMS"),
    "first logits": ("logits_relative", "relative RMS"),
    "greedy tokens": ("token_margin", "logits by which the reference may have preferred another"),
}
_CAPTION = """\
```sh
pip install 'WHEEL[cpu]'                           # WHEEL: what `make wheel` of dasheng-edge builds, 0.4 MB
dasheng-edge verify BUNDLE                         # is it still the same model on this machine?
dasheng-edge caption BUNDLE clip.wav               # any audio or video file
dasheng-edge caption BUNDLE clip.wav --prompt "What animal is this?"
dasheng-edge embed BUNDLE clip.wav --out clip.npz  # what the encoder hears: 25 vectors per second
```

```python
from dasheng_edge.runtime import Captioner

with Captioner.open("BUNDLE") as captioner:
    print(captioner.caption("clip.wav").text)
```

`decoder.gguf` alone also runs in llama.cpp and what is built on it, for text: `llama-cli -m decoder.gguf`. It hears
nothing there."""
_EMBED = """\
```sh
pip install 'WHEEL[cpu]'                              # WHEEL: what `make wheel` of dasheng-edge builds, 0.4 MB
dasheng-edge verify BUNDLE                            # is it still the same model on this machine?
dasheng-edge embed BUNDLE *.wav --out embeddings.npz  # any audio or video files
```

```python
import numpy as np

with np.load("embeddings.npz") as file:
    print(file["names"], file["mean"].shape, file["frames_0"].shape)
```"""


def model_card(
    manifest: Manifest,
    sizes: Mapping[str, int],
    steps: Sequence[StepReport],
    *,
    header: Mapping[str, object] | None = None,
    base_model: str | None = None,
    assumptions: Iterable[str] = (),
) -> str:
    """The text of README.md.

    `manifest` need not list its files yet: `sizes` holds the bytes of each but manifest.json and the card. `header`
    is the YAML header of the checkpoint's own card, `base_model` the checkpoint's name on the hub.
    """
    decoder, prompt = manifest.decoder, manifest.prompt
    kind = VARIANTS[manifest.variant].title.format(arch=decoder.arch.capitalize() if decoder else "")
    use = "describes sounds and answers questions about them" if decoder else "turns audio into vectors, 25 per second"
    sections = {
        "Files": _files(manifest, sizes),
        "Parameters": _parameters(manifest),
        "How it was verified": _verified(manifest, steps),
        "Prompt defaults": _prompt(prompt) if prompt else "",
        "How to run it": f"BUNDLE is this folder:\n\n{_CAPTION if decoder else _EMBED}",
        "Provenance": _provenance(manifest, base_model),
        "Assumptions": _assumptions(assumptions),
        "Limits": _limits(manifest, decoder, prompt),
    }
    intro = (
        f"# {_plain(manifest.name)}\n\n{kind}, exported by {manifest.provenance.tool} as a bundle that runs in "
        f"ONNX Runtime{' and llama.cpp' if decoder else ''}, offline and without PyTorch. It {use}."
    )
    body = [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return "\n\n".join([_header(manifest, header or {}, base_model), intro, *body]) + "\n"


def _header(manifest: Manifest, stated: Mapping[str, object], base_model: str | None) -> str:
    """What the hub reads; a string of JSON is one of YAML, too."""
    fields = {key: stated[key] for key in INHERITED if _is_text(stated.get(key))}
    if base_model:
        fields["base_model"] = base_model
    fields["library_name"] = "dasheng-edge"
    fields["pipeline_tag"] = "audio-text-to-text" if manifest.decoder else "feature-extraction"
    family = ["gguf", "midashenglm"] if manifest.decoder else []
    fields["tags"] = ["audio", "dasheng", "onnx", *family]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _is_text(value: object) -> bool:
    """A text, or a list of texts."""
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(one, str) for one in values)


def _files(manifest: Manifest, sizes: Mapping[str, int]) -> str:
    precision = {FRONT_END: "fp32", ENCODER: manifest.encoder.precision, PROJECTOR: "fp32"}
    if manifest.decoder:
        precision[DECODER] = manifest.decoder.precision
    order = [name for name in required_files(manifest) if name in sizes]
    order += sorted(sizes.keys() - set(order))
    rows = [
        (f"`{n}`", _CONTENTS.get(n, _beside(n)), precision.get(n.removesuffix(".data"), ""), _bytes(sizes[n]))
        for n in order
    ]
    rows.append(("total", "", "", _bytes(sum(sizes.values()))))
    table = _table(("file", "what it does", "precision", "bytes"), rows)
    return f"{table}\n\n`manifest.json` lists each with its SHA-256, which is checked when the bundle is opened."


def _beside(name: str) -> str:
    stem = name.removesuffix(".data")
    return f"weights of `{stem}`" if stem != name else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _parameters(manifest: Manifest) -> str:
    encoder, decoder = manifest.encoder, manifest.decoder
    shape = f"{_count(encoder.depth, 'layer')}, width {encoder.embed_dim}, {encoder.num_heads} heads"
    parts = [("encoder", encoder.parameters, shape)]
    if manifest.projector_parameters is not None:
        joined = f"{manifest.front_end.tokens_patches} patches to one audio token"
        parts.append(("projector", manifest.projector_parameters, joined))
    if decoder:
        shape = f"{_count(decoder.layers, 'layer')}, width {decoder.hidden_size}, vocabulary of {decoder.vocab_size:,}"
        parts.append(("decoder", decoder.parameters, shape))
    if len(parts) > 1:
        parts.append(("total", sum(count for _, count, _ in parts), ""))
    return _table(("part", "parameters", "shape"), [(part, f"{count:,}", shape) for part, count, shape in parts])


def _verified(manifest: Manifest, steps: Sequence[StepReport]) -> str:
    measured = [(step.name, f"{step.error:.2e}", f"{step.tolerance:.1e}", step.unit, step.note) for step in steps]
    limits = manifest.tolerances.model_dump(exclude_none=True)
    allowed = [(seam, f"{limits[field]:g}", unit) for seam, (field, unit) in _SEAMS.items() if field in limits]
    replayed = (
        "`dasheng-edge verify` replays `golden.npz` on the machine at hand and compares what lies between the parts "
        "with the reference. It accepts at most:"
    )
    return "\n\n".join([
        "The export compared each file that it wrote with its source, the checkpoint's weights in float32:",
        _table(("step", "error", "tolerance", "unit", "of"), measured),
        replayed,
        _table(("seam", "tolerance", "unit"), allowed),
    ])  # fmt: skip


def _prompt(facts: PromptFacts) -> str:
    sampling = facts.sampling
    how = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}"
    if sampling.temperature:
        how += f", top_k {sampling.top_k}, top_p {sampling.top_p:g}, min_p {sampling.min_p:g}"
    lines = [
        f"- prompt: {_code(facts.prompt)}",
        f"- system turn: {_code(facts.system) if facts.system else 'as the chat template has it'}",
        f"- order: {'audio, then text' if facts.audio_first else 'text, then audio'}",
        f"- at most {facts.max_new_tokens} new tokens, {how}, repetition penalty {sampling.repetition_penalty:g}",
    ]
    if facts.notes:
        lines += ["", "Where that comes from:", "", *(f"- {_plain(note)}" for note in facts.notes)]
    return "\n".join(lines)


def _provenance(manifest: Manifest, base_model: str | None) -> str:
    origin = manifest.provenance
    hub = f" ([{base_model}](https://huggingface.co/{base_model}))" if base_model else ""
    lines = [
        f"- checkpoint: {_code(origin.checkpoint)}{hub}",
        *([f"- revision: {_code(origin.revision)}"] if origin.revision else []),
        f"- SHA-256 of its tensors' files: {_code(origin.checkpoint_sha256)}",
        *(f"- adapter merged in: {_code(adapter)}" for adapter in origin.adapters),
        f"- made by: {origin.tool}, with {', '.join(f'{name} {v}' for name, v in sorted(origin.versions.items()))}",
    ]
    return "\n".join(lines)


def _assumptions(assumptions: Iterable[str]) -> str:
    lines = [f"- {_plain(sentence)}" for sentence in assumptions]
    intro = "What neither the checkpoint nor published code says was taken to be so:"
    return "\n".join([intro, "", *lines]) if lines else ""


def _limits(manifest: Manifest, decoder: DecoderFacts | None, prompt: PromptFacts | None) -> str:
    spec = manifest.front_end
    chunk_s = spec.chunk_frames * spec.hop_length / spec.sample_rate_hz
    shortest_ms = 1000 * spec.min_samples / spec.sample_rate_hz
    lines = [
        f"- Audio is mixed down to mono and resampled to {spec.sample_rate_hz / 1000:g} kHz.",
        f"- The encoder hears {chunk_s:g} s at a time, and nothing across the borders of these pieces.",
        f"- A clip shorter than {shortest_ms:g} ms is padded with silence.",
    ]
    if decoder and prompt:
        share = f"{decoder.context_length:,} positions, of which a second of audio takes"
        lines += [
            f"- Prompt, audio and answer share the decoder's {share} {spec.sample_rate_hz / spec.samples_per_token:g}.",
            f"- Answers get worse beyond {prompt.comfortable_s:g} s of audio.",
            "- It may be wrong, and may describe what cannot be heard. Do not rely on it where that can do harm.",
        ]
    else:
        lines.append("- Its vectors are comparable with those of the same checkpoint only.")
    return "\n".join(lines)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_plain(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _plain(text: str) -> str:
    """On one line, as prose, a list item or a cell must be."""
    return " ".join(text.split())


def _code(text: str) -> str:
    """As code, whatever it holds; line ends and control characters as JSON writes them."""
    quoted = json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"')
    longest = max((len(run) for run in re.findall("`+", quoted)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if quoted.startswith("`") or quoted.endswith("`") else ""
    return f"{fence}{pad}{quoted}{pad}{fence}"


def _bytes(size: int) -> str:
    return f"{size:,}"
