"""The sizes of a model: read from its tensors, held against its configuration, which adds what tensors cannot tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dasheng_edge.export.reference.dasheng import EncoderSpec
from dasheng_edge.export.variants.detection import Arch, Layout
from dasheng_edge.runtime.bundle.front_end_spec import AcousticSpec, FrontEndSpec
from dasheng_edge.runtime.errors import CheckpointFileError, CheckpointVariantError

from .config import AcousticConfig, EncoderConfig, Rope, TextConfig, checked
from .tensor_files import Source

FIX = "take config.json and weights from one revision"
# Fields that would change the computation, with the only value that is implemented.
_ENCODER_REQUIRED = {"qkv_bias": True, "init_values": None, "input_channels": 1, "sample_rate": 16000, "center": True}
_DASHENG_REQUIRED = {**_ENCODER_REQUIRED, "pad_last": True, "top_db": 120}
_TEXT_REQUIRED = {"hidden_act": "silu", "use_sliding_window": False}
# The same of feature extractors: of MiDashengLM's, which takes samples, and of Dasheng's, which makes the log-mel.
_WAVEFORM_REQUIRED = {"sampling_rate": 16000, "do_normalize": False}
_MEL_REQUIRED = {**_WAVEFORM_REQUIRED, "center": True, "top_db": 120}
_MEL_FIELDS = ("n_fft", "win_size", "hop_size", "f_min", "f_max")  # of a Dasheng feature extractor

# Embedding and head of the decoder: where they are one tensor, the latter is not stored.
EMBEDDING, HEAD = "decoder.model.embed_tokens.weight", "decoder.lm_head.weight"
CLASS_HEADS = 12  # of MiDashengLM's encoder class: what config.json leaves out is the class's default
# What the published encoders have, by (embed_dim, depth): dasheng-base and DashengTokenizer base, dasheng-0.6B and
# MiDashengLM-7B, dasheng-1.2B. The original class's default, 8, is none of theirs: its loaders pass the heads.
HEADS_BY_SIZE = {(768, 12): 12, (1280, 32): 16, (1536, 40): 24}
ROTARY_BASE = {"qwen2": 1e6, "qwen3": 1e4}  # the defaults of transformers' Qwen2.5-Omni and Qwen3 text classes


@dataclass(frozen=True)
class DecoderSpec:
    """Sizes of a Qwen2 or Qwen3 decoder."""

    arch: Arch
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int  # width of one attention head; heads * head_dim need not be hidden_size (Qwen3)
    vocab_size: int  # rows of the embedding, which may be more than the tokenizer has tokens
    context_length: int
    rms_norm_eps: float
    rope_theta: float
    tied: bool = False  # the head is the embedding: there is no decoder.lm_head.weight


@dataclass(frozen=True)
class Stated:
    """A checkpoint's configuration, and what messages call it and the checkpoint."""

    where: str  # the checkpoint
    source: str  # the configuration, e.g. "FOLDER/config.json"
    config: Mapping[str, Any]
    mel: Mapping[str, Any]  # the feature extractor's
    mel_source: str  # its configuration, e.g. "FOLDER/preprocessor_config.json"

    def section(self, name: str) -> Mapping[str, Any]:
        """A part of the configuration, empty where it is absent; `checked` refuses what is no object."""
        value: Mapping[str, Any] = self.config.get(name, {})
        return value


def encoder_sizes(stated: Stated, layout: Layout) -> tuple[EncoderSpec, FrontEndSpec, tuple[str, ...]]:
    """Encoder, front end, and the keys of the assumptions that they rest on.

    Raises:
        CheckpointFileError: the configuration contradicts the tensors.
    """
    if layout.variant == "dasheng":
        return _dasheng_sizes(stated, layout)
    section = "audio_encoder_config"
    audio = stated.section(section)
    checked(EncoderConfig, f"{stated.source}: {section}", audio, FIX)
    sizes = implied = _tensor_sizes(layout)
    _agree(stated.mel_source, "", stated.mel, _WAVEFORM_REQUIRED)
    joined = max(1, layout.sources["audio_projector.net.0.weight"].shape[1] // sizes["embed_dim"])
    _agree(stated.source, "", stated.config, {"subsample_factor": joined})
    acoustic: AcousticSpec | None = None
    assumed: tuple[str, ...] = ()
    default_heads: int | None = CLASS_HEADS
    if layout.variant == "midashenglm-tokenizer":
        acoustic, assumed = _acoustic(stated, layout)
        default_heads = None
        # What else it may say of windows and bands may be meant for the second spectrogram.
        implied = {key: sizes[key] for key in ("embed_dim", "depth", "mlp_ratio", "target_length")}
        implied |= {"n_mels_patch": acoustic.n_mels, "patch_stride_time": sizes["patch_stride"][1]}
        audio = {key: value for key, value in audio.items() if key not in ("n_fft", "win_length")}
    _agree(stated.source, section, audio, {**implied, **_ENCODER_REQUIRED})
    known = checked(EncoderConfig, f"{stated.source}: {section}", audio, FIX)
    encoder, by_size = _encoder_spec(stated, sizes, known.num_heads or default_heads)
    return encoder, _front_end(stated, known, sizes, joined, acoustic), (*assumed, *by_size)


def _dasheng_sizes(stated: Stated, layout: Layout) -> tuple[EncoderSpec, FrontEndSpec, tuple[str, ...]]:
    """A Dasheng encoder alone: fields stand at the top of the configuration, or in `encoder_kwargs`.

    The Hugging Face code pads the last chunk as the original does, behind the batch norm and with zeros, and keeps
    floor(frames / 4) patches. It differs in two lines that are taken for mistakes: where the frames are a multiple
    of 1008 it leaves out the last chunk, and with several clips of more than a chunk each it mixes their chunks up.
    """
    nested = stated.section("encoder_kwargs")
    checked(EncoderConfig, f"{stated.source}: encoder_kwargs", nested, FIX)
    mel = {key: stated.mel[key] for key in _MEL_FIELDS if key in stated.mel}
    audio = {**stated.config, **nested, **mel}
    sizes = _tensor_sizes(layout)
    _agree(stated.source, "encoder", audio, {**sizes, **_DASHENG_REQUIRED})
    bands = dict.fromkeys(("feature_size", "n_mels"), sizes["n_mels"])
    _agree(stated.mel_source, "", stated.mel, {**bands, **_MEL_REQUIRED})
    known = checked(EncoderConfig, stated.source, audio, FIX)
    encoder, by_size = _encoder_spec(stated, sizes, known.num_heads)
    return encoder, _front_end(stated, known, sizes, 1).model_copy(update={"pads_last_chunk": True}), by_size


def _tensor_sizes(layout: Layout) -> dict[str, Any]:
    """What the encoder's tensors tell, by the names of the configuration's fields."""
    sources = layout.sources
    dim, _, mels, width = sources["audio_encoder.patch_embed.proj.weight"].shape
    hidden = sources["audio_encoder.blocks.0.mlp.fc1.weight"].shape[0]
    return {
        "embed_dim": dim, "depth": _count(sources, "audio_encoder.blocks."), "mlp_ratio": hidden / dim,
        "n_mels": mels, "patch_size": [mels, width], "patch_stride": [mels, width],
        "target_length": sources["audio_encoder.time_pos_embed"].shape[-1] * width,
    }  # fmt: skip


def _encoder_spec(stated: Stated, sizes: Mapping[str, Any], heads: int | None) -> tuple[EncoderSpec, tuple[str, ...]]:
    """Sizes of the encoder, and the key of the assumption where its heads are stated nowhere."""
    dim, depth = sizes["embed_dim"], sizes["depth"]
    used = heads or HEADS_BY_SIZE.get((dim, depth))
    if used is None:
        raise CheckpointFileError(
            f"{stated.source} does not say num_heads, and no published encoder has embed_dim {dim} and depth {depth}; "
            "state num_heads there"
        )
    if dim % used:
        raise CheckpointFileError(f"{stated.source}: {used} heads do not divide embed_dim {dim} (tensors); {FIX}")
    return EncoderSpec(dim, depth, used, sizes["mlp_ratio"]), () if heads else ("heads by size",)


def _front_end(
    stated: Stated,
    known: EncoderConfig,
    sizes: Mapping[str, Any],
    tokens_patches: int,
    acoustic: AcousticSpec | None = None,
) -> FrontEndSpec:
    """The shortest clip that is not padded yields one token."""
    width = sizes["patch_stride"][1]
    min_samples = known.hop_length * width * tokens_patches
    _check_windows(stated.source, "log-mel", known.n_fft, known.win_length, min_samples)
    if acoustic:
        _check_windows(stated.source, "acoustic mel", acoustic.n_fft, acoustic.win_length, min_samples)
    return FrontEndSpec(
        n_fft=known.n_fft, win_length=known.win_length, hop_length=known.hop_length, n_mels=sizes["n_mels"],
        f_min_hz=known.f_min, f_max_hz=known.f_max, patch_frames=width, chunk_frames=sizes["target_length"],
        tokens_patches=tokens_patches, min_samples=min_samples, acoustic=acoustic,
    )  # fmt: skip


def _check_windows(source: str, spectrogram: str, n_fft: int, win_length: int, min_samples: int) -> None:
    """Both ends of a clip are reflected by n_fft / 2; with an odd n_fft some clips would have a frame less."""
    if n_fft % 2 or win_length > n_fft or n_fft // 2 >= min_samples:
        raise CheckpointFileError(
            f"{source}: the {spectrogram} has n_fft {n_fft} and win_length {win_length}, expected win_length <= n_fft, "
            f"and n_fft even and less than {2 * min_samples}, twice the shortest clip (hop_length * patch width * "
            f"subsample_factor); {FIX}"
        )


def _acoustic(stated: Stated, layout: Layout) -> tuple[AcousticSpec, tuple[str, ...]]:
    """The second spectrogram: bands from the convolution, windows from a stored filterbank or config.json."""
    section = "audio_encoder_config"
    where = f"{stated.source}: {section}"
    known = checked(AcousticConfig, where, stated.section(section), FIX)
    kernel = layout.sources["audio_encoder.acoustic.patch_embed.weight"].shape
    width = layout.sources["audio_encoder.patch_embed.proj.weight"].shape[-1]
    if kernel[-1] != width:
        raise CheckpointVariantError(
            f"{stated.where}: the acoustic patches are {kernel[-1]} frames wide, the semantic ones {width}; "
            "expected the same width, since they are added"
        )
    stored = _stored_windows(layout, kernel[2])
    _agree(stated.source, section, known.model_dump(exclude_none=True), stored)
    n_fft, window, assumed = _acoustic_windows(where, stated.section(section), known, stored)
    if known.f_min_patch is None and known.f_max_patch is None:
        assumed = ("acoustic range", *assumed)
    spec = {
        "n_mels": kernel[2], "n_fft": n_fft, "win_length": window,
        "f_min_hz": known.f_min_patch or 0.0, "f_max_hz": known.f_max_patch or 8000.0,
    }  # fmt: skip
    return checked(AcousticSpec, f"{stated.where}: the acoustic spectrogram", spec, FIX), assumed


def _acoustic_windows(
    where: str, audio: Mapping[str, Any], known: AcousticConfig, stored: Mapping[str, int]
) -> tuple[int, int, tuple[str, ...]]:
    """n_fft and window of the acoustic spectrogram, and the keys of the assumptions that they rest on.

    `n_fft` and `win_length` may be meant for either spectrogram, and are a pair.
    """
    common, semantic = checked(EncoderConfig, where, audio, FIX), EncoderConfig()
    n_fft = known.n_fft_patch or stored.get("n_fft_patch")
    window = known.win_length_patch or stored.get("win_length_patch")
    assumed: tuple[str, ...] = ()
    if n_fft is None and common.n_fft != semantic.n_fft:
        n_fft, assumed = common.n_fft, ("n_fft is acoustic",)
        if window is None and "win_length" in common.model_fields_set:
            window = common.win_length
    elif n_fft is None:
        n_fft, assumed = AcousticSpec(n_mels=1).n_fft, ("acoustic n_fft",)
    window = n_fft if window is None else window
    for field, said, either in (
        ("n_fft", common.n_fft, (semantic.n_fft, n_fft)),
        ("win_length", common.win_length, (semantic.win_length, window)),
    ):
        if said not in either:
            raise CheckpointFileError(
                f"{where}: {field} is {said}, expected {either[0]}, which the log-mel has, or {either[1]}, which the "
                f"acoustic mel has (as {field}_patch or a stored filterbank says it); {FIX}"
            )
    return n_fft, window, assumed


def _stored_windows(layout: Layout, mels: int) -> dict[str, int]:
    """Fields of the acoustic spectrogram's windows, where a checkpoint stores its filterbank [bins, mels].

    The semantic one's lies beside the semantic encoder, whose patch convolution is called `proj`.
    """
    semantic = layout.sources["audio_encoder.patch_embed.proj.weight"].name.removesuffix("patch_embed.proj.weight")
    own = [source for name, source in layout.ignored.items() if not name.startswith(f"{semantic}front_end.0.")]
    banks = [source.shape for source in own if len(source.shape) == 2 and source.shape[1] == mels]
    windows = [source.shape for source in own if len(source.shape) == 1 and source.name.endswith("window")]
    if len(banks) != 1:
        return {}
    stored = {"n_fft_patch": 2 * (banks[0][0] - 1)}
    return stored | ({"win_length_patch": windows[0][0]} if len(windows) == 1 else {})


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
        "num_hidden_layers": _count(sources, "decoder.model.layers."), "num_attention_heads": heads,
        "num_key_value_heads": kv_rows // head_dim, "head_dim": head_dim, "vocab_size": vocab,
    }  # fmt: skip
    _agree(stated.source, "text_config", text, {**sizes, **_TEXT_REQUIRED})
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


def _count(sources: Mapping[str, Source], prefix: str) -> int:
    """How many numbered modules follow a prefix, e.g. "audio_encoder.blocks."."""
    return len({name.removeprefix(prefix).split(".")[0] for name in sources if name.startswith(prefix)})


def _agree(source: str, section: str, config: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    """Each field that the configuration states must equal what the tensors (or the implementation) have."""
    for key, value in got.items():
        said = list(config[key]) if isinstance(config.get(key), tuple) else config.get(key)
        if key in config and said != value:
            field = f"{section}.{key}" if section else key
            raise CheckpointFileError(
                f"{source} says {field} = {said!r}, but the tensors or the implementation have {value!r}; {FIX}"
            )


def expected_shapes(
    encoder: EncoderSpec, front_end: FrontEndSpec, decoder: DecoderSpec | None
) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model by its canonical name."""
    shapes = {f"audio_encoder.{name}": shape for name, shape in _encoder_shapes(encoder, front_end).items()}
    if decoder is not None:
        d = decoder.hidden_size
        for name, columns in (("0", front_end.tokens_patches * encoder.embed_dim), ("2", d)):
            shapes |= {f"audio_projector.net.{name}.weight": (d, columns), f"audio_projector.net.{name}.bias": (d,)}
        shapes |= {f"decoder.{name}": shape for name, shape in _decoder_shapes(decoder).items()}
    return shapes


def _encoder_shapes(encoder: EncoderSpec, front_end: FrontEndSpec) -> dict[str, tuple[int, ...]]:
    dim, mlp = encoder.embed_dim, int(encoder.embed_dim * encoder.mlp_ratio)
    shapes: dict[str, tuple[int, ...]] = {
        **{f"init_bn.{name}": (front_end.n_mels,) for name in ("weight", "bias", "running_mean", "running_var")},
        "patch_embed.proj.weight": (dim, 1, front_end.n_mels, front_end.patch_frames),
        "patch_embed.proj.bias": (dim,),
        "time_pos_embed": (1, dim, 1, front_end.chunk_patches),
        "freq_pos_embed": (1, dim, 1, 1),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
    }
    linears = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (mlp, dim), "mlp.fc2": (dim, mlp)}
    for i in range(encoder.depth):
        for name, shape in {**linears, "norm1": (dim,), "norm2": (dim,)}.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    if front_end.acoustic:
        shapes["acoustic.patch_embed.weight"] = (dim, 1, front_end.acoustic.n_mels, front_end.patch_frames)
        shapes |= dict.fromkeys(("acoustic.patch_embed.bias", "acoustic.norm.weight", "acoustic.norm.bias"), (dim,))
    return shapes


def _decoder_shapes(decoder: DecoderSpec) -> dict[str, tuple[int, ...]]:
    d, wide = decoder.hidden_size, decoder.intermediate_size
    q, kv = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (decoder.vocab_size, d)}
    if not decoder.tied:
        shapes["lm_head.weight"] = (decoder.vocab_size, d)
    shapes["model.norm.weight"] = (d,)
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, q), "mlp.gate_proj": (wide, d), "mlp.up_proj": (wide, d), "mlp.down_proj": (d, wide),
        "input_layernorm": (d,), "post_attention_layernorm": (d,),
    }  # fmt: skip
    norms = {"self_attn.q_norm": (decoder.head_dim,), "self_attn.k_norm": (decoder.head_dim,)}
    for i in range(decoder.layers):
        for name, shape in (layer | (norms if decoder.arch == "qwen3" else {})).items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
            if decoder.arch == "qwen2" and name.endswith(("q_proj", "k_proj", "v_proj")):
                shapes[f"model.layers.{i}.{name}.bias"] = shape[:1]
    return shapes
