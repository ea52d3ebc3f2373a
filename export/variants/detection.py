"""Which member of the family a checkpoint is, told by its tensors, and what its tensors are called elsewhere.

Every module of the model is found by the end of a tensor's name and by its shape, under whatever prefix, and is
given the name that the published MiDashengLM-7B has for it: its canonical name. The rest of the exporter knows
only canonical names. What no published file or code settles stands in `ASSUMPTIONS`, and only there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dasheng_edge.export.checkpoint.tensor_files import Source
from dasheng_edge.runtime.bundle.manifest import Variant
from dasheng_edge.runtime.errors import CheckpointVariantError

if TYPE_CHECKING:
    from dasheng_edge.export.checkpoint.checkpoint import Checkpoint

Arch = Literal["qwen2", "qwen3"]

# Modules of a Dasheng encoder. The original wraps the batch norm in a Sequential, so that it is `init_bn.1`.
_ENCODER_MODULES = {
    "init_bn.1": "init_bn", "init_bn": "init_bn", "patch_embed.proj": "patch_embed.proj",
    "time_pos_embed": "time_pos_embed", "freq_pos_embed": "freq_pos_embed", "blocks": "blocks", "norm": "norm",
}  # fmt: skip
_DECODER_MODULES = ("embed_tokens", "layers", "norm")

# Parts of a name that mark what is not needed: the window and filterbank, which are computed (some checkpoints
# store them, some of those rounded to bfloat16), and a classifier.
_IGNORED_PARTS = frozenset({"front_end", "outputlayer", "mask_token"})
_IGNORED_SUFFIX = ".num_batches_tracked"
_MAE_DECODER = "decoder."  # what Dasheng was trained with; beside an encoder alone

# The tensors that sizes are read from, and their dimensions.
_ENCODER_SIZING = {
    "audio_encoder.patch_embed.proj.weight": 4,  # [dim, 1, mels, patch frames]
    "audio_encoder.time_pos_embed": 4,  # [1, dim, 1, patches of a chunk]
    "audio_encoder.blocks.0.mlp.fc1.weight": 2,
}
_ACOUSTIC_SIZING = {"audio_encoder.acoustic.patch_embed.weight": 4}  # [dim, 1, mels, patch frames]
_DECODER_SIZING = {
    "audio_projector.net.0.weight": 2,  # [llm dim, joined patches * dim]
    "decoder.model.embed_tokens.weight": 2,
    "decoder.model.layers.0.self_attn.q_proj.weight": 2,
    "decoder.model.layers.0.self_attn.k_proj.weight": 2,
    "decoder.model.layers.0.mlp.gate_proj.weight": 2,
}
_Q_BIAS = "decoder.model.layers.0.self_attn.q_proj.bias"  # makes a decoder Qwen2
_Q_NORM = "decoder.model.layers.0.self_attn.q_norm.weight"  # makes it Qwen3


@dataclass(frozen=True)
class Assumption:
    """Something that is taken to be so because no published file that could be read says it."""

    key: str
    what: str
    where: str  # what would be wrong if it were not so
    basis: str


_TOKENIZER_CODE = "the code of mispeech/dashengtokenizer does so"
ASSUMPTIONS = (
    Assumption(
        "tokenizer names", "the encoder's modules are called as in DashengTokenizer's code, under some prefix",
        "all encoder tensors", "every tensor must be matched, by the end of its name and by its shape",
    ),
    Assumption(
        "tokenizer mask", "patches from floor(samples / 640) on are no keys of the attention, as in the 7B",
        "the last patch of a clip", "the frame mask in the code of mispeech/dashengtokenizer comes to the same",
    ),
    Assumption(
        "tokenizer zeroing", "behind the first chunk, a last patch that is no key has its acoustic part only",
        "the last patch of some clips longer than 10.08 s", "the code of mispeech/dashengtokenizer does so",
    ),
    Assumption(
        "acoustic mels", "the acoustic branch has as many mel bands as its convolution has rows",
        "the second spectrogram", "the tensor's shape",
    ),
    Assumption(
        "acoustic spectrum", "the acoustic spectrogram is ln(max(mel of magnitudes, 1e-7)), HTK, not normalised",
        "the second spectrogram", _TOKENIZER_CODE,
    ),
    Assumption(
        "acoustic n_fft", "the acoustic spectrogram has n_fft and window 1024",
        "the second spectrogram", f"neither config.json nor a stored filterbank says it; {_TOKENIZER_CODE}",
    ),
    Assumption(
        "n_fft is acoustic", "n_fft in audio_encoder_config is the acoustic spectrogram's, the other one has 512",
        "both spectrograms", "the 512 of the other is fixed in the code of mispeech/dashengtokenizer",
    ),
    Assumption(
        "acoustic range", "the acoustic mel bands lie between 0 and 8000 Hz",
        "the second spectrogram", "torchaudio's defaults, which the code of mispeech/dashengtokenizer leaves",
    ),
    Assumption(
        "acoustic norm", "the acoustic branch's layer norm has epsilon 1e-5",
        "the acoustic branch", "PyTorch's default, which the code of mispeech/dashengtokenizer leaves",
    ),
    Assumption(
        "audio ids", "the audio tokens have the ids that tokenizer.json gives their texts",
        "the prompt", "<|AUDIO|>, <|audio_bos|> and <|audio_eos|> are texts of the 7B's tokens",
    ),
    Assumption(
        "heads by size", "the encoder has as many attention heads as the published one of its size",
        "the encoder's attention", "the configuration does not say it, and tensors cannot",
    ),
    Assumption(
        "tied by absence", "the head is the embedding",
        "the decoder's head", "no head is stored, and config.json does not say tie_word_embeddings",
    ),
)  # fmt: skip
_TOKENIZER_ALWAYS = (
    "tokenizer names", "tokenizer mask", "tokenizer zeroing", "acoustic mels", "acoustic spectrum", "acoustic norm",
    "audio ids",
)  # fmt: skip


def assumptions(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What is taken for granted in exporting this checkpoint, a sentence each; mostly nothing."""
    return tuple(
        f"{entry.what} (decides {entry.where}; rests on: {entry.basis})"
        for entry in ASSUMPTIONS
        if entry.key in checkpoint.assumed
    )


@dataclass(frozen=True)
class Layout:
    """A checkpoint's tensors, sorted out."""

    variant: Variant
    arch: Arch | None  # of the decoder
    renames: tuple[tuple[str, str], ...]  # (stored module, canonical module), the most special first
    sources: Mapping[str, Source]  # by canonical name
    unmatched: tuple[str, ...]  # stored names that no rule knows
    ignored: Mapping[str, Source]  # by stored name
    assumed: tuple[str, ...]  # keys of ASSUMPTIONS


def renamed(renames: Iterable[tuple[str, str]], name: str) -> str | None:
    """The canonical name of a tensor or module, or None where no rule knows it."""
    for stored, canonical in renames:
        if name == stored or name.startswith(stored + "."):
            return canonical + name[len(stored) :]
    return None


def find_layout(where: object, config: Mapping[str, Any], stored: Mapping[str, Source]) -> Layout:
    """Find every module in a checkpoint; `where` is what messages call it.

    Raises:
        CheckpointVariantError: it is not a member of the family, and why.
    """
    ignored = {name for name in stored if _IGNORED_PARTS & set(name.split(".")) or name.endswith(_IGNORED_SUFFIX)}
    used = {name: source for name, source in stored.items() if name not in ignored}
    refuse = _refusal(where, config, used)
    variant = _variant(used)
    if variant == "dasheng":
        ignored |= {name for name in used if name.startswith(_MAE_DECODER)}
        used = {name: source for name, source in used.items() if name not in ignored}
    renames = _rules(used, variant, refuse)
    by_canonical: dict[str, Source] = {}
    unmatched = []
    for name, source in used.items():
        canonical = renamed(renames, name)
        if canonical is None:
            unmatched.append(name)
        elif (other := by_canonical.setdefault(canonical, source)) is not source:
            raise refuse(f"{other.name} and {name} are one tensor under two names")
    arch = None if variant == "dasheng" else _arch(by_canonical, refuse)
    _check_sizing(variant, arch, by_canonical, refuse)
    plain = all(stored == canonical for stored, canonical in renames)
    return Layout(
        variant, arch, () if plain else renames, by_canonical, tuple(unmatched),
        {name: stored[name] for name in stored if name in ignored},
        _TOKENIZER_ALWAYS if variant == "midashenglm-tokenizer" else (),
    )  # fmt: skip


def _refusal(
    where: object, config: Mapping[str, Any], used: Mapping[str, Source]
) -> Callable[[str], CheckpointVariantError]:
    prefixes = ", ".join(sorted({name.split(".")[0] for name in used})) or "no tensor"
    kind = f"model_type {config.get('model_type')!r}, tensors under: {prefixes}"
    return lambda reason: CheckpointVariantError(f"{where} is no model of the Dasheng family: {reason} ({kind})")


def _modules(used: Mapping[str, Source], leaf: str, dimensions: int | None = None) -> list[str]:
    """What stands before `leaf` in the names that end with it, e.g. "decoder.model."."""
    return [
        name.removesuffix(leaf)
        for name, source in used.items()
        if (name == leaf or name.endswith(f".{leaf}")) and dimensions in (None, len(source.shape))
    ]


def _variant(used: Mapping[str, Source]) -> Variant:
    """A decoder's vocabulary or a projector makes it a MiDashengLM, a second patch convolution the tokenizer kind."""
    if _modules(used, "patch_embed.weight", 4):
        return "midashenglm-tokenizer"
    if _modules(used, "embed_tokens.weight") or _modules(used, "net.0.weight"):
        return "midashenglm"
    return "dasheng"


def _rules(
    used: Mapping[str, Source], variant: Variant, refuse: Callable[[str], CheckpointVariantError]
) -> tuple[tuple[str, str], ...]:
    """Stored module -> canonical module for every module that is found."""

    def only(leaf: str) -> str:
        found = _modules(used, leaf)
        if len(found) != 1:
            got = f"several tensors {leaf} ({', '.join(prefix + leaf for prefix in found)})" if found else f"no {leaf}"
            raise refuse(f"it has {got}, expected one, under any prefix")
        return found[0]

    encoder = only("patch_embed.proj.weight")
    rules = {encoder + stored: f"audio_encoder.{name}" for stored, name in _ENCODER_MODULES.items()}
    if variant != "dasheng":
        if variant == "midashenglm-tokenizer" and not _modules(used, "embed_tokens.weight"):
            raise refuse("it is a DashengTokenizer without a language model, which is not supported")
        decoder = only("embed_tokens.weight")
        rules |= {decoder + name: f"decoder.model.{name}" for name in _DECODER_MODULES}
        rules[f"{only('net.0.weight')}net"] = "audio_projector.net"
        rules |= {f"{head}lm_head": "decoder.lm_head" for head in _modules(used, "lm_head.weight")}
    ordered = _most_special_first(rules)
    if variant == "midashenglm-tokenizer":
        acoustic = only("patch_embed.weight")
        rules[f"{acoustic}patch_embed"] = "audio_encoder.acoustic.patch_embed"
        if norm := _acoustic_norm(used, acoustic, ordered):
            rules[norm] = "audio_encoder.acoustic.norm"
        ordered = _most_special_first(rules)
    return tuple(rule for rule in ordered if any(renamed((rule,), name) for name in used))


def _most_special_first(rules: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(rules.items(), key=lambda rule: (-len(rule[0]), rule)))


def _acoustic_norm(used: Mapping[str, Source], acoustic: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    """The norm that is neither the encoder's nor the decoder's; the one beside the convolution where there are more."""
    dim = used[f"{acoustic}patch_embed.weight"].shape[0]
    found = [
        name.removesuffix(".weight")
        for name, source in used.items()
        if name.endswith("norm.weight") and source.shape == (dim,) and renamed(rules, name) is None
    ]
    beside = f"{acoustic}norm"
    return beside if beside in found else found[0] if len(found) == 1 else None


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
    sizing = _ENCODER_SIZING | ({} if variant == "dasheng" else _DECODER_SIZING)
    sizing |= _ACOUSTIC_SIZING if variant == "midashenglm-tokenizer" else {}
    sizing |= {_Q_NORM: 1} if arch == "qwen3" else {}
    for name, dimensions in sizing.items():
        if name not in sources:
            raise refuse(f"it has no {name}")
        shape = sources[name].shape
        if len(shape) != dimensions or 0 in shape:
            raise refuse(f"{name} has shape {shape}, expected {dimensions} dimensions, all greater than 0")
