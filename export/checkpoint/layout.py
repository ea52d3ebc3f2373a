"""Which member of the family a checkpoint is, told by its tensors, and what its tensors are called elsewhere.

Every module of the model is known by the end of a tensor's name and by its shape, under whatever prefix, and is
given the name that the published MiDashengLM-7B has for it: its canonical name. The rest of the exporter knows
only canonical names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dasheng_edge.export.files.tensor_files import Source
from dasheng_edge.export.variants.specs import Arch
from dasheng_edge.export.variants.table import VARIANTS
from dasheng_edge.export.variants.variant import Layout, Renames, StoredTensors, Variant, canonical_name
from dasheng_edge.runtime.errors import CheckpointVariantError

# Modules of an encoder. The original wraps the batch norm in a Sequential, so that it is `init_bn.1`.
_ENCODER_MODULES = {
    "init_bn.1": "init_bn", "init_bn": "init_bn", "patch_embed.proj": "patch_embed.proj",
    "time_pos_embed": "time_pos_embed", "freq_pos_embed": "freq_pos_embed", "blocks": "blocks", "norm": "norm",
}  # fmt: skip
_DECODER_MODULES = ("embed_tokens", "layers", "norm")

# Parts of a name that mark what is not needed: the window and filterbank, which are computed (some checkpoints
# store them, some of those rounded to bfloat16), and a classifier.
_IGNORED_PARTS = frozenset({"front_end", "outputlayer", "mask_token", "rotary_emb", "rotary_pos_emb"})
# Ends of names: what counts in training, and what is computed when a model is made, which some writers store.
_IGNORED_ENDS = frozenset({
    "num_batches_tracked", "inv_freq", "original_inv_freq", "cos_cached", "sin_cached", "freqs_cis", "position_ids",
    "attention_mask", "causal_mask", "masked_bias",
})  # fmt: skip
# What torch.compile, DataParallel, FSDP and activation checkpointing put into a name wherever they wrap a module ...
_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_PREFIXES = frozenset({"base_model", "model"})  # ... and what has no meaning inside a numbered layer

# The tensors that sizes are read from, and their dimensions.
_ENCODER_SIZING = {
    "audio_encoder.patch_embed.proj.weight": 4,  # [dim, 1, mels, patch frames]
    "audio_encoder.time_pos_embed": 4,  # [1, dim, 1, patches of a chunk]
    "audio_encoder.blocks.0.mlp.fc1.weight": 2,
}
_DECODER_SIZING = {
    "audio_projector.net.0.weight": 2,  # [llm dim, joined patches * dim]
    "decoder.model.embed_tokens.weight": 2,
    "decoder.model.layers.0.self_attn.q_proj.weight": 2,
    "decoder.model.layers.0.self_attn.k_proj.weight": 2,
    "decoder.model.layers.0.mlp.gate_proj.weight": 2,
}
_Q_BIAS = "decoder.model.layers.0.self_attn.q_proj.bias"  # makes a decoder Qwen2
_Q_NORM = "decoder.model.layers.0.self_attn.q_norm.weight"  # makes it Qwen3


def unwrapped(name: str) -> str:
    """The name of a tensor or module without what training put around its modules."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    layer = next((place for place, part in enumerate(parts) if part.isdecimal()), len(parts))
    return ".".join((*parts[:layer], *(part for part in parts[layer:] if part not in _PREFIXES)))


def is_ignored(name: str) -> bool:
    """Whether a tensor is none that inference needs, whatever the variant."""
    parts = name.split(".")
    return parts[-1] in _IGNORED_ENDS or not _IGNORED_PARTS.isdisjoint(parts)


def find_layout(where: object, config: Mapping[str, Any], stored: Mapping[str, Source]) -> Layout:
    """Sort out a checkpoint's tensors; `where` is what messages call it.

    Raises:
        CheckpointVariantError: it is not a member of the family, and why.
    """
    refuse = _refusal(where, config, (name for name in stored if not is_ignored(name)))
    stored = _unwrapped(stored, refuse)
    ignored = {name for name in stored if is_ignored(name)}
    tensors = StoredTensors({name: source for name, source in stored.items() if name not in ignored}, refuse)
    variant = _variant(tensors)
    ignored |= {name for name in stored if name.startswith(variant.ignored)}
    tensors = StoredTensors({name: source for name, source in stored.items() if name not in ignored}, refuse)
    renames = _renames(tensors, variant)
    sources: dict[str, Source] = {}
    unmatched = []
    for name, source in tensors.sources.items():
        canonical = canonical_name(renames, name)
        if canonical is None:
            unmatched.append(name)
        elif (other := sources.setdefault(canonical, source)) is not source:
            raise refuse(f"{other.name} and {name} are one tensor under two names")
    arch = _arch(sources, refuse) if variant.decodes else None
    _check_sizing(variant, arch, sources, refuse)
    plain = all(stored == canonical for stored, canonical in renames)
    left_out = {name: source for name, source in stored.items() if name in ignored}
    return Layout(variant, arch, () if plain else renames, sources, tuple(unmatched), left_out)


def _unwrapped(stored: Mapping[str, Source], refuse: Callable[[str], CheckpointVariantError]) -> Mapping[str, Source]:
    named: dict[str, Source] = {}
    for name, source in stored.items():
        if (other := named.setdefault(unwrapped(name), source)) is not source:
            raise refuse(f"{other.name} and {name} are one tensor under two names")
    return named


def _refusal(where: object, config: Mapping[str, Any], names: Iterable[str]) -> Callable[[str], CheckpointVariantError]:
    prefixes = ", ".join(sorted({name.split(".")[0] for name in names})) or "no tensor"
    kind = f"model_type {config.get('model_type')!r}, tensors under: {prefixes}"
    return lambda reason: CheckpointVariantError(f"{where} is no model of the Dasheng family: {reason} ({kind})")


def _variant(tensors: StoredTensors) -> Variant:
    """The last row of the table of which the checkpoint has a mark, else the one without marks."""
    fitting = [row for row in VARIANTS.values() if any(tensors.prefixes(*mark) for mark in row.marks)]
    return fitting[-1] if fitting else next(row for row in VARIANTS.values() if not row.marks)


def _renames(tensors: StoredTensors, variant: Variant) -> Renames:
    """Stored module -> canonical module, for every module that the checkpoint has."""
    encoder = tensors.prefix("patch_embed.proj.weight")
    rules = {encoder + stored: f"audio_encoder.{name}" for stored, name in _ENCODER_MODULES.items()}
    if variant.decodes:
        if not tensors.prefixes("embed_tokens.weight"):
            raise tensors.refuse(f"it is a {variant.encoder_name} without a language model, which is not supported")
        decoder = tensors.prefix("embed_tokens.weight")
        rules |= {decoder + name: f"decoder.model.{name}" for name in _DECODER_MODULES}
        rules[f"{tensors.prefix('net.0.weight')}net"] = "audio_projector.net"
        rules |= {f"{head}lm_head": "decoder.lm_head" for head in tensors.prefixes("lm_head.weight")}
    rules |= variant.code.branch(tensors, _most_special_first(rules))
    return tuple(
        rule
        for rule in _most_special_first(rules)
        if any(canonical_name((rule,), name) is not None for name in tensors.sources)
    )


def _most_special_first(rules: Mapping[str, str]) -> Renames:
    return tuple(sorted(rules.items(), key=lambda rule: (-len(rule[0]), rule)))


def _arch(sources: Mapping[str, Source], refuse: Callable[[str], CheckpointVariantError]) -> Arch:
    bias, norm = _Q_BIAS in sources, _Q_NORM in sources
    if bias == norm:
        have = "both" if bias else "neither"
        raise refuse(f"its decoder has {have} of q_proj.bias (Qwen2) and q_norm.weight (Qwen3), expected one")
    return "qwen3" if norm else "qwen2"


def _check_sizing(
    variant: Variant,
    arch: Arch | None,
    sources: Mapping[str, Source],
    refuse: Callable[[str], CheckpointVariantError],
) -> None:
    sizing = {**_ENCODER_SIZING, **(_DECODER_SIZING if variant.decodes else {}), **variant.sizing}
    sizing |= {_Q_NORM: 1} if arch == "qwen3" else {}
    for name, dimensions in sizing.items():
        if name not in sources:
            raise refuse(f"it has no {name}")
        shape = sources[name].shape
        if len(shape) != dimensions or 0 in shape:
            raise refuse(f"{name} has shape {shape}, expected {dimensions} dimensions, all greater than 0")
