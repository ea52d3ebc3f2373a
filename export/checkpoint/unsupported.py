"""What is given as a checkpoint and cannot be exported, and what to give instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dasheng_edge.export.files.names import ADAPTER_CONFIG, CONFIG, INDEX, TORCH_SUFFIXES, WEIGHTS
from dasheng_edge.export.variants.table import EXPORTABLE
from dasheng_edge.runtime.errors import CheckpointNotFoundError, CheckpointVariantError
from dasheng_edge.runtime.names import address_hint

if TYPE_CHECKING:  # no torch here: what downloads refuses models by these rules, too
    from dasheng_edge.export.files.tensor_files import Source

READABLE_DTYPES = ("F32", "F16", "BF16")
_PLAIN_DTYPES = ("F64", "C64", "C128", "I64", "BOOL")  # are not read either, but nobody packs weights into them
_QUANTIZED_NAME = re.compile(
    r"(midashenglm-[\w.]+?(?:-\d{4})?)-(?:fp8|int8|int4|nf4|\d+bit|w\d+a\d+|gptq|awq|bnb|gguf|mlx)", re.IGNORECASE
)
# Ends of the names of all plain weights of the family; a quantized model has others, whatever quantized it.
_PLAIN_ENDS = frozenset({"weight", "bias", "running_mean", "running_var", "time_pos_embed", "freq_pos_embed"})
_PACKED_TENSORS = (  # what GPTQ, AWQ, compressed-tensors, fp8 and bitsandbytes store beside or instead of a weight
    "qweight", "qzeros", "g_idx", "weight_scale", "weight_scale_inv", "input_scale", "weight_packed",
    "weight_zero_point", "absmax", "quant_map", "SCB",
)  # fmt: skip
_OTHER_MODELS = (
    (re.compile(r"[-_]gen\b|LMGen"), "MiDashengLM-Gen", "generates audio"),
    (re.compile(r"spatial", re.IGNORECASE), "MiDashengLM-Spatial", "hears two channels with two encoders"),
)
_UNMERGED = re.compile(r"\.(lora_\w+|base_layer)(\.|$)")
# Of an adapter, too.
ZERO3 = (
    "as DeepSpeed ZeRO-3 saves a model whose weights it has spread over processes and not gathered "
    "(stage3_gather_16bit_weights_on_model_save)"
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_DOWNLOAD = "download one with `dasheng-edge pull mispeech/midashenglm-7b-1021-bf16`"


def plain_repository(names: Iterable[str], *, encoder_alone: bool = False) -> str:
    """The published float repository that a quantized model was made from; all of them if the names do not say."""
    for name in names:
        if match := _QUANTIZED_NAME.search(name):
            base = f"mispeech/{match[1].lower()}"
            for repository in (f"{base}-bf16", f"{base}-fp32", f"{base}-0804-fp32"):
                if repository in EXPORTABLE:
                    return repository
    return f"one of {', '.join(name for name in EXPORTABLE if not encoder_alone or '/dasheng-' in name)}"


def refuse_quantized(
    where: Path, config: Mapping[str, Any], sources: Mapping[str, Source], names: Iterable[str]
) -> None:
    """Refuse packed weights, whether the configuration says so or only the tensors do, and types that are not read.

    `sources` are the tensors that may be weights, `names` what the checkpoint may be called, the most specific first.

    Raises:
        CheckpointVariantError: naming the repository to use instead, or the type to save it in; or what to take out
            of config.json, if that says that plain weights were quantized.
    """
    other = {
        name: source.dtype for name, source in sources.items() if source.shape and source.dtype not in READABLE_DTYPES
    }
    packed_types = sorted(set(other.values()) - set(_PLAIN_DTYPES))
    packed = next((name for name in sources if name.rpartition(".")[2] in _PACKED_TENSORS), None)
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else quantization
        how = f"quant_method {method!r}"
        if not other and all(name.rpartition(".")[2] in _PLAIN_ENDS for name in sources):
            types = ", ".join(sorted({source.dtype for source in sources.values()}))
            raise CheckpointVariantError(
                f"{where} holds plain weights ({types}), but its config.json has a quantization_config ({how}), as is "
                "left when an adapter that was trained on quantized weights (QLoRA) is merged; remove "
                "quantization_config from config.json and export again"
            )
    elif packed:
        how = f"it stores {packed}"
    elif packed_types:
        how = f"it holds {', '.join(packed_types)} weights, expected float32, bfloat16 or float16 throughout"
    elif other:
        name, dtype = next(iter(other.items()))
        raise CheckpointVariantError(
            f"{where} holds {name} in {dtype} ({len(other)} such tensors), expected float32, bfloat16 or float16 "
            "throughout; save the model again in float32 or bfloat16, without what is no weight of it"
        )
    else:
        return
    encoder_alone = bool(sources) and not any("embed_tokens" in name for name in sources)
    advice = "" if encoder_alone else ", and let --decoder, e.g. --decoder Q4_K_M, quantize the decoder"
    raise CheckpointVariantError(
        f"{where} is a quantized checkpoint ({how}), which cannot be exported; export "
        f"{plain_repository(names, encoder_alone=encoder_alone)}{advice}"
    )


def refuse_half_saved(where: Path, sources: Mapping[str, Source]) -> None:
    """Refuse what a training wrote before its weights were put together.

    Raises:
        CheckpointVariantError: tensors are empty, or an adapter is not merged; how to save it is said.
    """
    if len(empty := [name for name, source in sources.items() if source.shape == (0,)]) > 1:
        raise CheckpointVariantError(
            f"{where}: {len(empty)} tensors are empty ({empty[0]}), {ZERO3}; gather them, or make whole tensors of the "
            "training's own files with DeepSpeed's zero_to_fp32.py"
        )
    if unmerged := next((name for name in sources if _UNMERGED.search(name)), None):
        raise CheckpointVariantError(
            f"{where} holds {unmerged}, a part of a LoRA adapter that is not merged into its weights; merge it with "
            "peft's merge_and_unload before saving, or export the checkpoint that it was trained on with --adapter"
        )


def refuse_other_models(where: Path, config: Mapping[str, Any]) -> None:
    """Refuse by name what has tensors like ours and is something else.

    Raises:
        CheckpointVariantError: it is MiDashengLM-Gen or MiDashengLM-Spatial.
    """
    architectures = config.get("architectures")
    said = [str(config.get("model_type")), *(map(str, architectures) if isinstance(architectures, list) else ())]
    for pattern, model, reason in _OTHER_MODELS:
        if any(pattern.search(name) for name in said):
            raise CheckpointVariantError(
                f"{where} is {model} ({', '.join(said)}), which {reason} and is not supported; "
                f"export one of {', '.join(EXPORTABLE)}"
            )


def not_a_folder(path: Path) -> CheckpointNotFoundError:
    """The error for a path that is neither a folder nor a torch file."""
    if path.suffix == ".gguf":
        reason = "it is a GGUF, which is a result of an export; give the float checkpoint that it was made from"
    elif path.suffix == ".bin":
        reason = "it is a pickle, which is not opened; give a folder with safetensors in it"
    elif path.suffix == ".safetensors" or path.name == INDEX:
        reason = f"it is a single file of a checkpoint; give the folder that it lies in, {path.parent}"
    else:
        what = "is a file" if path.exists() else "does not exist"
        pulled = f"if it is a model of the hub, download it with `dasheng-edge pull {path}`"
        hint = pulled if not path.exists() and _HUB_NAME.fullmatch(str(path)) else address_hint(path) or _DOWNLOAD
        reason = f"it {what}, expected a local folder in the Hugging Face layout; {hint}"
    return CheckpointNotFoundError(f"cannot open checkpoint {path}: {reason}")


def not_a_checkpoint(folder: Path) -> CheckpointNotFoundError:
    """The error for a folder without config.json or without tensors, by what lies in it."""
    has_config = (folder / CONFIG).is_file()
    torch_files = sorted(path.name for path in folder.iterdir() if path.suffix in TORCH_SUFFIXES)
    if (folder / ADAPTER_CONFIG).is_file():
        reason = "it is a LoRA adapter; give the checkpoint that it was trained on, and this with --adapter"
    elif (folder / "manifest.json").is_file():
        reason = "it is a bundle, the result of an export; give the checkpoint that it was made from"
    elif runs := _training_outputs(folder):
        reason = f"it is the output of a training; {runs}"
    elif ggufs := sorted(folder.glob("*.gguf")):
        reason = (
            f"it holds {ggufs[0].name}, a result of an export; "
            f"give {plain_repository([folder.resolve().name, ggufs[0].name])}"
        )
    elif len(torch_files) > 1:
        reason = f"it holds several torch files ({', '.join(torch_files)}); give one of them"
    elif not has_config:
        reason = "no config.json in it; give the folder that holds config.json"
    else:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        instead = f"; {pickles[0]} is a pickle, which is not opened" if pickles else ""
        reason = (
            f"no {WEIGHTS} and no {INDEX}{instead}; download the safetensors, or save the model again with "
            "safe_serialization=True"
        )
    return CheckpointNotFoundError(f"{folder} is not a checkpoint: {reason}")


def _training_outputs(folder: Path) -> str | None:
    """What to give of a training's output folder: the merged model, or the last adapter with its base."""
    if (folder / "final" / CONFIG).is_file():
        return f"give the merged model in it, {folder / 'final'}"
    steps = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    if final := [path for path in (folder / "final",) if (path / ADAPTER_CONFIG).is_file()]:
        steps = final
    if not steps:
        return None
    last = max(steps, key=lambda path: int(path.name.rpartition("-")[2]) if path.name != "final" else 0)
    if (last / ADAPTER_CONFIG).is_file():
        return f"give the checkpoint that it started from, and {last} with --adapter"
    return f"give the model in it, {last}"
