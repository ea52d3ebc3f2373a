"""A MiDashengLM checkpoint in the Hugging Face layout: found out by its tensors, checked, and read one by one.

The sizes are read from the tensors and compared with `config.json`; what tensors cannot tell (heads,
rotary base, STFT sizes) comes from `config.json`. Nothing is loaded until a tensor is asked for, and a
tensor can be asked for in blocks of rows: the GGUF is written so. Encoder and projector are held whole in
float32 when they are exported, and so is the decoder when the golden vectors are made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dasheng_edge.runtime.bundle import Variant
from dasheng_edge.runtime.errors import CheckpointFileError, CheckpointNotFoundError, CheckpointVariantError
from dasheng_edge.runtime.front_end import FrontEndSpec

from .dasheng import EncoderSpec
from .model_config import EncoderConfig, TextConfig, checked

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
BLOCK_BYTES = 256 << 20  # of float32: how much of a tensor is in memory at a time
READABLE_DTYPES = ("F32", "F16", "BF16")  # anything else is packed or scaled: a quantized repository

# The one renaming table: what other writers of this model call the same tensors.
RENAMED_PREFIXES = {"audio_encoder.init_bn.1.": "audio_encoder.init_bn."}  # Dasheng wraps it in a Sequential
# Recomputed (old checkpoints store the mel buffers, some rounded to bf16) or of no use in inference.
IGNORED_PREFIXES = ("audio_encoder.front_end.",)
IGNORED_SUFFIXES = (".num_batches_tracked",)

FIX = "take config.json and weights from one revision"
# Fields that would change the computation, with the only value that is implemented.
_ENCODER_REQUIRED = {"qkv_bias": True, "init_values": None, "input_channels": 1, "sample_rate": 16000, "center": True}
_TEXT_REQUIRED = {"hidden_act": "silu", "use_sliding_window": False, "tie_word_embeddings": False}


@dataclass(frozen=True)
class DecoderSpec:
    """Sizes of a Qwen2 or Qwen3 decoder."""

    arch: Literal["qwen2", "qwen3"]
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
class Source:
    """Where a tensor is stored."""

    file: Path
    name: str  # in the file
    dtype: str  # safetensors' name: "F32", "BF16" ...
    shape: tuple[int, ...]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) as float32; the file is mapped only for the time of the call."""
        with safe_open(self.file, framework="pt") as file:
            part: Tensor = file.get_slice(self.name)[start:stop]
            return part.to(torch.float32, copy=True)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: names, shapes and sizes, no weights yet."""

    folder: Path
    config: Mapping[str, Any]
    encoder: EncoderSpec
    front_end: FrontEndSpec
    decoder: DecoderSpec
    sources: Mapping[str, Source]  # by the published name
    files: tuple[Path, ...]  # that hold tensors
    variant: Variant = "midashenglm"
    renames: tuple[tuple[str, str], ...] = ()  # (stored prefix, canonical prefix), the most special first

    def canonical(self, name: str) -> str:
        """The canonical name of a tensor or module that is stored under `name`; adapters use stored names, too."""
        for stored, canonical in self.renames:
            if name.startswith(stored):
                return canonical + name.removeprefix(stored)
        return name

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor, float32."""
        return self.sources[name].rows(start, stop)

    def sha256(self) -> str:
        """SHA-256 of all tensor files, one after another: `cat *.safetensors | sha256sum`."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    def parameters(self, prefix: str) -> int:
        """Trained values under a prefix, e.g. "audio_encoder."; running statistics are not trained."""
        return sum(
            torch.Size(source.shape).numel()
            for name, source in self.sources.items()
            if name.startswith(prefix) and ".running_" not in name
        )


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Open a local checkpoint and check every name and shape in it.

    Raises:
        CheckpointNotFoundError: there is no such folder, or no checkpoint in it.
        CheckpointFileError: a shard is missing or broken, or config.json contradicts the tensors.
        CheckpointVariantError: the tensors are not those of MiDashengLM with a Qwen2 decoder.
    """
    folder = Path(folder)
    config = _read_config(folder)
    sources = {_published_name(name): source for name, source in _read_sources(folder).items()}
    sources = {name: source for name, source in sources.items() if not _ignored(name)}
    _check_variant(folder, config, sources)
    encoder, front_end = _encoder_sizes(folder, config, sources)
    decoder = _decoder_sizes(folder, config, sources)
    _check_shapes(folder, sources, expected_shapes(encoder, front_end, decoder))
    files = tuple(sorted({source.file for source in sources.values()}))
    return Checkpoint(folder, config, encoder, front_end, decoder, sources, files)


def row_blocks(shape: tuple[int, ...], block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
    """Half-open row ranges of at most `block_bytes` of float32 each, at least one row."""
    row_bytes = 4 * torch.Size(shape[1:]).numel()
    step = max(1, block_bytes // row_bytes)
    return ((start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """A JSON object from a side file; empty when it may be missing and is."""
    if missing_ok and not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointFileError(f"cannot read {path}: {error}; download it again") from error
    if not isinstance(content, dict):
        raise CheckpointFileError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing"
        raise CheckpointNotFoundError(
            f"cannot open checkpoint {folder}: found {what} there, expected a local folder in the Hugging Face "
            "layout; download one with `hf download mispeech/midashenglm-7b-1021-bf16 --local-dir FOLDER`"
        )
    if not (folder / "config.json").is_file():
        raise CheckpointNotFoundError(
            f"{folder} is not a checkpoint: no config.json in it; give the folder that holds config.json"
        )
    config = read_json(folder / "config.json")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else quantization
        raise CheckpointVariantError(
            f"{folder} is a quantized repository (quant_method {method!r}); export the fp32 or bf16 repository "
            "and let --decoder quantize it"
        )
    return config


def _read_sources(folder: Path) -> dict[str, Source]:
    """All tensors by their stored names, from the headers of the shards."""
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointFileError(f"{folder / INDEX} has no weight_map; download it again")
    elif (folder / WEIGHTS).is_file():
        return _read_header(folder / WEIGHTS)
    else:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        found = f"only {pickles[0]}, a pickle, which is not opened" if pickles else "none"
        raise CheckpointNotFoundError(
            f"{folder} has no {WEIGHTS} and no {INDEX} (found {found}); download the safetensors, or save the "
            "model again with safe_serialization=True"
        )
    sources: dict[str, Source] = {}
    for file in sorted(set(weight_map.values())):
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointFileError(f"{folder / INDEX} names {file!r}, expected a file name inside the folder")
        sources |= _read_header(folder / file)
    if absent := sorted(set(weight_map) - set(sources)):
        raise CheckpointFileError(
            f"{folder / INDEX} says that {weight_map[absent[0]]} holds {absent[0]}, which no shard does "
            f"({len(absent)} such tensors); download index and shards again, from one revision"
        )
    return {name: sources[name] for name in weight_map}


def tensors_in(path: Path) -> dict[str, Source]:
    """All tensors of a safetensors file by name; raises SafetensorError or OSError where it is not one."""
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return {name: Source(path, name, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def _read_header(path: Path) -> dict[str, Source]:
    if not path.is_file():
        raise CheckpointFileError(f"{path} is missing, the index lists it; download the checkpoint again")
    try:
        return tensors_in(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointFileError(
            f"{path} is truncated or not safetensors ({path.stat().st_size} bytes: {error}); download it again"
        ) from error


def _published_name(name: str) -> str:
    for old, new in RENAMED_PREFIXES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _ignored(name: str) -> bool:
    return name.startswith(IGNORED_PREFIXES) or name.endswith(IGNORED_SUFFIXES)


def _check_variant(folder: Path, config: Mapping[str, Any], sources: Mapping[str, Source]) -> None:
    """Refuse by name what is known and not supported, before any size is read."""
    prefixes = ", ".join(sorted({name.split(".")[0] for name in sources})) or "no tensor"
    kind = f"model_type {config.get('model_type')!r}, tensors under: {prefixes}"
    packed = {source.dtype for source in sources.values()} - set(READABLE_DTYPES)
    if any(name.endswith(("q_norm.weight", "k_norm.weight")) for name in sources):
        reason = "it has q_norm/k_norm, so its decoder is Qwen3 (MiDashengLM-0.6B), which is not supported yet"
    elif any(name.startswith(("audio_encoder.model.", "audio_encoder.patch_embed.weight")) for name in sources):
        reason = "it has a second, acoustic branch (DashengTokenizer, MiDashengLM-0.6B), which is not supported yet"
    elif packed:
        reason = f"it holds {', '.join(sorted(packed))} weights, expected float32, bfloat16 or float16 throughout"
    elif lacking := [name for name in _SIZING if name not in sources]:
        reason = f"it has no {', '.join(lacking)}"
    elif any(len(sources[name].shape) != dimensions for name, dimensions in _SIZING.items()):
        name = next(name for name, dimensions in _SIZING.items() if len(sources[name].shape) != dimensions)
        reason = f"{name} has shape {sources[name].shape}, expected {_SIZING[name]} dimensions"
    else:
        return
    raise CheckpointVariantError(f"{folder} is not a MiDashengLM-7B-like checkpoint: {reason} ({kind})")


# The tensors that sizes are read from, and their dimensions. A q_proj bias is what makes a decoder Qwen2.
_SIZING = {
    "audio_encoder.patch_embed.proj.weight": 4,  # [dim, 1, mels, patch frames]
    "audio_encoder.time_pos_embed": 4,  # [1, dim, 1, patches of a chunk]
    "audio_encoder.blocks.0.mlp.fc1.weight": 2,
    "audio_projector.net.0.weight": 2,  # [llm dim, joined patches * dim]
    "decoder.model.embed_tokens.weight": 2,
    "decoder.model.layers.0.self_attn.q_proj.bias": 1,
    "decoder.model.layers.0.self_attn.k_proj.weight": 2,
    "decoder.model.layers.0.mlp.gate_proj.weight": 2,
}


def _count(sources: Mapping[str, Source], prefix: str) -> int:
    """How many numbered modules follow a prefix, e.g. "audio_encoder.blocks."."""
    return len({name.removeprefix(prefix).split(".")[0] for name in sources if name.startswith(prefix)})


def _agree(folder: Path, section: str, config: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    """Each field that config.json states must equal what the tensors (or the implementation) have."""
    for key, value in got.items():
        if key in config and config[key] != value:
            raise CheckpointFileError(
                f"{folder}: config.json says {section}.{key} = {config[key]!r}, but the tensors or the "
                f"implementation have {value!r}; {FIX}"
            )


def _encoder_sizes(
    folder: Path, config: Mapping[str, Any], sources: Mapping[str, Source]
) -> tuple[EncoderSpec, FrontEndSpec]:
    audio = config.get("audio_encoder_config", {})
    known = checked(EncoderConfig, f"{folder / 'config.json'}: audio_encoder_config", audio, FIX)
    dim, _, mels, width = sources["audio_encoder.patch_embed.proj.weight"].shape
    chunk = sources["audio_encoder.time_pos_embed"].shape[-1] * width
    hidden = sources["audio_encoder.blocks.0.mlp.fc1.weight"].shape[0]
    joined = sources["audio_projector.net.0.weight"].shape[1] // dim
    depth = _count(sources, "audio_encoder.blocks.")
    sizes = {
        "embed_dim": dim, "depth": depth, "mlp_ratio": hidden / dim, "n_mels": mels,
        "patch_size": [mels, width], "patch_stride": [mels, width], "target_length": chunk,
    }  # fmt: skip
    _agree(folder, "audio_encoder_config", audio, {**sizes, **_ENCODER_REQUIRED})
    _agree(folder, "(top level)", config, {"subsample_factor": joined})
    heads = known.num_heads
    if dim % heads:
        raise CheckpointFileError(f"{folder}: {heads} heads (config.json) do not divide embed_dim {dim} (tensors)")
    front_end = FrontEndSpec(
        n_fft=known.n_fft, win_length=known.win_length, hop_length=known.hop_length, n_mels=mels,
        f_min_hz=known.f_min, f_max_hz=known.f_max, patch_frames=width, chunk_frames=chunk,
        tokens_patches=joined, min_samples=known.hop_length * width * joined,
    )  # fmt: skip
    return EncoderSpec(dim, depth, heads, hidden / dim), front_end


def _decoder_sizes(folder: Path, config: Mapping[str, Any], sources: Mapping[str, Source]) -> DecoderSpec:
    text = config.get("text_config", {})
    known = checked(TextConfig, f"{folder / 'config.json'}: text_config", text, FIX)
    vocab, hidden = sources["decoder.model.embed_tokens.weight"].shape
    kv_rows = sources["decoder.model.layers.0.self_attn.k_proj.weight"].shape[0]
    intermediate = sources["decoder.model.layers.0.mlp.gate_proj.weight"].shape[0]
    heads = known.num_attention_heads
    if hidden % heads or kv_rows % (hidden // heads):
        raise CheckpointFileError(
            f"{folder}: {heads} attention heads (config.json) fit neither q_proj ({hidden} rows) nor k_proj "
            f"({kv_rows} rows); {FIX}"
        )
    layers, kv_heads = _count(sources, "decoder.model.layers."), kv_rows // (hidden // heads)
    sizes = {
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads, "head_dim": hidden // heads, "vocab_size": vocab,
    }  # fmt: skip
    _agree(folder, "text_config", text, {**sizes, **_TEXT_REQUIRED})
    _check_rope(folder, known)
    return DecoderSpec(
        "qwen2", hidden, intermediate, layers, heads, kv_heads, hidden // heads, vocab,
        known.max_position_embeddings, known.rms_norm_eps, known.rotary_base,
    )  # fmt: skip


def _check_rope(folder: Path, text: TextConfig) -> None:
    """`mrope_section` may stand there: with one-dimensional positions it computes the plain rotation."""
    for rope in (text.rope_scaling, text.rope_parameters):
        kind = (rope.rope_type or rope.type) if rope else None
        if kind not in (None, "default", "mrope"):
            raise CheckpointVariantError(
                f"{folder}: config.json asks for rope_scaling {kind!r}, only the unscaled rotation is supported"
            )


def expected_shapes(encoder: EncoderSpec, front_end: FrontEndSpec, decoder: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of a MiDashengLM with a Qwen2 decoder, by its published name."""
    dim, mlp, d = encoder.embed_dim, int(encoder.embed_dim * encoder.mlp_ratio), decoder.hidden_size
    kv, wide = decoder.kv_heads * decoder.head_dim, decoder.intermediate_size
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
    shapes = {f"audio_encoder.{name}": shape for name, shape in shapes.items()}
    for name, columns in (("0", front_end.tokens_patches * dim), ("2", d)):
        shapes |= {f"audio_projector.net.{name}.weight": (d, columns), f"audio_projector.net.{name}.bias": (d,)}
    shapes |= {f"decoder.{name}.weight": (decoder.vocab_size, d) for name in ("model.embed_tokens", "lm_head")}
    shapes["decoder.model.norm.weight"] = (d,)
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (d, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, d), "mlp.gate_proj": (wide, d), "mlp.up_proj": (wide, d),
        "mlp.down_proj": (d, wide), "input_layernorm": (d,), "post_attention_layernorm": (d,),
    }  # fmt: skip
    for i in range(decoder.layers):
        for name, shape in layer.items():
            shapes[f"decoder.model.layers.{i}.{name}.weight"] = shape
            if name.endswith(("q_proj", "k_proj", "v_proj")):
                shapes[f"decoder.model.layers.{i}.{name}.bias"] = shape[:1]
    return shapes


def _check_shapes(folder: Path, sources: Mapping[str, Source], expected: Mapping[str, tuple[int, ...]]) -> None:
    missing, unexpected = sorted(set(expected) - set(sources)), sorted(set(sources) - set(expected))
    if missing or unexpected:
        raise CheckpointVariantError(
            f"{folder}: {len(missing)} tensors are missing ({', '.join(missing[:5]) or 'none'}) and "
            f"{len(unexpected)} are unexpected ({', '.join(unexpected[:5]) or 'none'}); "
            "expected exactly those of MiDashengLM with a Qwen2 decoder"
        )
    for name, shape in expected.items():
        if sources[name].shape != shape:
            raise CheckpointVariantError(f"{folder}: {name} has shape {sources[name].shape}, expected {shape}")
