"""The sizes of a model: read from its tensors, held against its configuration, which adds what tensors cannot tell."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt, field_validator, model_validator
from torch import nn

from dasheng_edge.export.files.json_files import StatedFields, checked
from dasheng_edge.export.variants.modules import AudioProjector
from dasheng_edge.export.variants.specs import DecoderSpec, EncoderSpec
from dasheng_edge.export.variants.stated import FIX, Stated, agree
from dasheng_edge.export.variants.table import HEADS_BY_SIZE
from dasheng_edge.export.variants.variant import Layout, Variant
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.errors import CheckpointFileError, CheckpointVariantError

_TEXT_REQUIRED = {"hidden_act": "silu", "use_sliding_window": False}  # the only values that are implemented
# Embedding and head of the decoder: where they are one tensor, the latter is not stored.
EMBEDDING, HEAD = "decoder.model.embed_tokens.weight", "decoder.lm_head.weight"
ROTARY_BASE = {"qwen2": 1e6, "qwen3": 1e4}  # the defaults of transformers' Qwen2.5-Omni and Qwen3 text classes

_Base = Annotated[float, Field(gt=0, le=1e12)]


class Rope(StatedFields):
    """`rope_scaling` or, since transformers 5, `rope_parameters`, which holds the base too."""

    rope_type: str | None = None
    type: str | None = None  # what older versions call it
    rope_theta: _Base | None = None
    partial_rotary_factor: float | None = None


class TextConfig(StatedFields):
    """`text_config`; the defaults are those of transformers' classes, where these differ Qwen2.5-Omni's."""

    num_attention_heads: PositiveInt = 28
    rms_norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-6
    max_position_embeddings: Annotated[int, Field(gt=0, lt=1 << 31)] = 32768
    rope_theta: _Base | None = None
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None
    partial_rotary_factor: float | None = None  # of a head, how much is rotated
    layer_types: list[str] | None = None
    tie_word_embeddings: bool | None = None

    @field_validator("rope_scaling", "rope_parameters", mode="before")
    @classmethod
    def _of_full_attention(cls, stated: object) -> object:
        """By the type of a layer, as transformers 5 may have it: no other type than full attention is taken."""
        if isinstance(stated, dict) and any(isinstance(value, dict) for value in stated.values()):
            if not isinstance(stated.get("full_attention"), dict):
                raise ValueError("expected the rotation of full_attention")
            return stated["full_attention"]
        return stated

    @model_validator(mode="after")
    def _one_base(self) -> TextConfig:
        if len(self._bases) > 1:
            raise ValueError(f"expected one rope_theta, not {' and '.join(f'{base:g}' for base in self._bases)}")
        return self

    @property
    def _bases(self) -> list[float]:
        places = (self, self.rope_parameters, self.rope_scaling)
        return list(dict.fromkeys(place.rope_theta for place in places if place and place.rope_theta))

    @property
    def rotary_base(self) -> float | None:
        """The base of the rotation, wherever it stands."""
        return next(iter(self._bases), None)


def encoder_sizes(stated: Stated, layout: Layout) -> tuple[EncoderSpec, FrontEndSpec, tuple[str, ...]]:
    """Encoder, front end, and the keys of the assumptions that they rest on.

    Raises:
        CheckpointFileError: the configuration contradicts the tensors.
    """
    heads, front_end, assumed = layout.variant.code.read(stated, layout)
    sizes = layout.encoder_sizes()
    dim, depth = sizes["embed_dim"], sizes["depth"]
    used = heads or HEADS_BY_SIZE.get((dim, depth))
    if used is None:
        raise CheckpointFileError(
            f"{stated.source} does not say num_heads, and no published encoder has embed_dim {dim} and depth {depth}; "
            "state num_heads there"
        )
    if dim % used:
        raise CheckpointFileError(f"{stated.source}: {used} heads do not divide embed_dim {dim} (tensors); {FIX}")
    return (
        EncoderSpec(dim, depth, used, sizes["mlp_ratio"]),
        front_end,
        (*assumed, *(() if heads else ("heads by size",))),
    )


def decoder_sizes(stated: Stated, layout: Layout, *, tied: bool) -> DecoderSpec:
    """Sizes of the decoder; a Qwen3 head's width is read from its norm, a Qwen2's is hidden_size / heads.

    Raises:
        CheckpointFileError: config.json contradicts the tensors.
        CheckpointVariantError: it asks for attention or a rotation that is not implemented.
    """
    text, sources, arch = stated.section("text_config"), layout.sources, layout.arch
    assert arch is not None
    known = checked(TextConfig, f"{stated.source}: text_config", text, FIX)
    vocab, hidden = sources[EMBEDDING].shape
    layer = "decoder.model.layers.0"
    q_rows = sources[f"{layer}.self_attn.q_proj.weight"].shape[0]
    kv_rows = sources[f"{layer}.self_attn.k_proj.weight"].shape[0]
    if arch == "qwen3":
        head_dim = sources[f"{layer}.self_attn.q_norm.weight"].shape[0]
        heads = q_rows // head_dim
    else:
        heads = known.num_attention_heads
        head_dim = hidden // heads
    fits = heads * head_dim == q_rows and (arch == "qwen3" or q_rows == hidden)
    if not fits or kv_rows % head_dim or heads % (kv_rows // head_dim):
        raise CheckpointFileError(
            f"{stated.source}: {heads} attention heads of width {head_dim} do not fit q_proj ({q_rows} rows) and "
            f"k_proj ({kv_rows} rows), expected whole heads, as many to each of k_proj's; {FIX}"
        )
    sizes = {
        "hidden_size": hidden, "intermediate_size": sources[f"{layer}.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": layout.count("decoder.model.layers."), "num_attention_heads": heads,
        "num_key_value_heads": kv_rows // head_dim, "head_dim": head_dim, "vocab_size": vocab,
    }  # fmt: skip
    agree(stated.source, "text_config", text, {**sizes, **_TEXT_REQUIRED})
    _check_attention(stated.where, known)
    return DecoderSpec(
        arch, hidden, sizes["intermediate_size"], sizes["num_hidden_layers"], heads, kv_rows // head_dim, head_dim,
        vocab, known.max_position_embeddings, known.rms_norm_eps, known.rotary_base or ROTARY_BASE[arch], tied,
    )  # fmt: skip


def _check_attention(where: str, text: TextConfig) -> None:
    """`mrope_section` may stand there: with one-dimensional positions it computes the plain rotation."""
    rope: Rope | None
    for rope in (text.rope_scaling, text.rope_parameters):
        kind = (rope.rope_type or rope.type) if rope else None
        if kind not in (None, "default", "mrope"):
            raise CheckpointVariantError(
                f"{where}: config.json asks for rope_scaling {kind!r}, only the unscaled rotation is supported"
            )
    for part in (text, text.rope_scaling, text.rope_parameters):
        if part and part.partial_rotary_factor not in (None, 1):
            raise CheckpointVariantError(
                f"{where}: config.json asks for partial_rotary_factor {part.partial_rotary_factor:g}, only the "
                "rotation of whole heads is supported"
            )
    if others := set(text.layer_types or ()) - {"full_attention"}:
        raise CheckpointVariantError(
            f"{where}: config.json asks for layer_types {sorted(others)}, only full_attention is supported"
        )


def expected_shapes(
    variant: Variant, encoder: EncoderSpec, front_end: FrontEndSpec, decoder: DecoderSpec | None
) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model by its canonical name; its modules are asked, without making their weights."""
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {"audio_encoder": variant.code.encoder(encoder, front_end)}
        if decoder is not None:
            modules["audio_projector"] = AudioProjector(
                encoder.embed_dim, decoder.hidden_size, front_end.tokens_patches
            )
            modules["decoder"] = decoder_modules(decoder)["model"](decoder_config(decoder))
    shapes = {
        f"{part}.{name}": tuple(tensor.shape)
        for part, module in modules.items()
        for name, tensor in module.state_dict().items()
        if not name.endswith(".num_batches_tracked")  # used in training only
    }
    if decoder is not None and decoder.tied:
        del shapes[HEAD]
    return shapes


def decoder_modules(spec: DecoderSpec) -> dict[str, Any]:
    """transformers' classes of an architecture: whole model, layer, norm and rotary embedding."""
    if spec.arch == "qwen3":
        from transformers.models.qwen3 import modeling_qwen3 as qwen3

        return {
            "model": qwen3.Qwen3ForCausalLM, "layer": qwen3.Qwen3DecoderLayer,
            "norm": qwen3.Qwen3RMSNorm, "rotary": qwen3.Qwen3RotaryEmbedding,
        }  # fmt: skip
    from transformers.models.qwen2 import modeling_qwen2 as qwen2

    return {
        "model": qwen2.Qwen2ForCausalLM, "layer": qwen2.Qwen2DecoderLayer,
        "norm": qwen2.Qwen2RMSNorm, "rotary": qwen2.Qwen2RotaryEmbedding,
    }  # fmt: skip


def decoder_config(spec: DecoderSpec) -> Any:
    """transformers' configuration of a decoder."""
    from transformers import Qwen2Config, Qwen3Config

    return (Qwen3Config if spec.arch == "qwen3" else Qwen2Config)(
        hidden_size=spec.hidden_size, intermediate_size=spec.intermediate_size, num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads, num_key_value_heads=spec.kv_heads, head_dim=spec.head_dim,
        vocab_size=spec.vocab_size, max_position_embeddings=spec.context_length, rms_norm_eps=spec.rms_norm_eps,
        rope_theta=spec.rope_theta, tie_word_embeddings=spec.tied, attn_implementation="sdpa",
    )  # fmt: skip
