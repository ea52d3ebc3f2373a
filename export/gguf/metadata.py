"""What a GGUF says beside its tensors: sizes, tokenizer, and where the model comes from.

The fields about the origin are those that llama.cpp's own converter writes, read from the same places: the YAML
header of the model card and the name on the Hugging Face hub. Nothing is made up: a field that the checkpoint does
not state is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import gguf
from yaml import YAMLError

from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.checkpoint.checkpoint import Checkpoint
from dasheng_edge.export.variants.table import EXPORTABLE
from dasheng_edge.runtime.bundle.manifest import Sampling

from .tokenizer import Vocabulary

PREFIX = "decoder."
HUB = "https://huggingface.co"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Whose names are taken from what a file states: a relative path such as "output/final" looks like one on the hub, too.
OWNERS = frozenset(repository.partition("/")[0] for repository in EXPORTABLE)


def add_metadata(
    writer: gguf.GGUFWriter, merged: MergedTensors, file_type: gguf.LlamaFileType, sampling: Sampling | None
) -> None:
    """State everything but the tokenizer."""
    writer.add_type("model")
    _add_origin(writer, merged)
    if sampling:
        _add_sampling(writer, sampling)
    _add_sizes(writer, merged.checkpoint)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """State the tokenizer; nothing is added before a text, since the chat template says all there is."""
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for byte-level BPE
    writer.add_tokenizer_pre("qwen2")  # Qwen3 cuts text as Qwen2 does
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types([int(kind) for kind in vocabulary.types])
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_eos_token_id(vocabulary.eos_id)
    # Else llama.cpp takes <|im_end|> or <|endoftext|> for the end of a turn, whichever its hash table has first.
    writer.add_eot_token_id(vocabulary.eot_id)
    if vocabulary.eom_id is not None:
        writer.add_eom_token_id(vocabulary.eom_id)
    if vocabulary.pad_id is not None:
        writer.add_pad_token_id(vocabulary.pad_id)
    if vocabulary.bos_id is not None:
        writer.add_bos_token_id(vocabulary.bos_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(vocabulary.chat_template)


def hub_id(checkpoint: Checkpoint) -> str | None:
    """The checkpoint's name on the hub, "owner/name": where it was pulled from, else a published one in config.json."""
    if checkpoint.origin:
        return checkpoint.origin.repo
    stated = _hub_id(checkpoint.config.get("_name_or_path"))
    return stated if stated and stated.partition("/")[0] in OWNERS else None


def other_bases(merged: MergedTensors) -> tuple[str, ...]:
    """Adapters that state another model as their base, a sentence each, worded as `Assumption` is.

    No error: a model may have several names on the hub. Without its name on the hub nothing can be said.
    """
    if (base := hub_id(merged.checkpoint)) is None:
        return ()
    sentences = []
    for adapter in merged.adapters:
        if (stated := _hub_id(adapter.base)) and stated.lower() != base.lower():
            other = stated if stated.partition("/")[0] in OWNERS | {base.partition("/")[0]} else "another model"
            sentences.append(
                f"adapter {adapter.name} is one for {base}, although it says that it was trained on {other} (decides "
                "all that it changes; rests on: the names and shapes of its tensors)"
            )
    return tuple(sentences)


def _hub_id(stated: object) -> str | None:
    """What a file states, if it may be a name on the hub."""
    return stated if isinstance(stated, str) and _HUB_ID.fullmatch(stated) else None


def model_card(folder: Path) -> Mapping[str, object]:
    """The YAML header of the checkpoint's README.md; empty without one, or where it does not parse."""
    try:
        return gguf.Metadata.load_model_card(folder)
    except (YAMLError, OSError, ValueError, RecursionError):  # prose for readers: no reason to refuse a checkpoint
        return {}


def _add_origin(writer: gguf.GGUFWriter, merged: MergedTensors) -> None:
    checkpoint = merged.checkpoint
    parameters, adapters = merged.parameters(PREFIX), [adapter.name for adapter in merged.adapters]
    _, _, basename, finetune, version, _ = gguf.Metadata.get_model_id_components(checkpoint.name, parameters)
    writer.add_name(" + ".join([checkpoint.name, *adapters]))
    if basename:
        writer.add_basename(basename)
    if trained := [*([finetune] if finetune else []), *adapters]:
        writer.add_finetune("-".join(trained))
    if version:
        writer.add_version(version)
    writer.add_size_label(gguf.size_label(parameters, 0, 0, 0))
    _add_card(writer, model_card(checkpoint.folder))
    if repository := hub_id(checkpoint):
        owner, _, name = repository.rpartition("/")
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, name)
        writer.add_base_model_organization(0, owner)
        writer.add_base_model_repo_url(0, f"{HUB}/{repository}")
        if checkpoint.origin:
            writer.add_base_model_version(0, checkpoint.origin.revision)


def _add_card(writer: gguf.GGUFWriter, card: Mapping[str, object]) -> None:
    if licences := _texts(card.get("license")):
        writer.add_license(",".join(licences))
    if isinstance(title := card.get("license_name"), str):
        writer.add_license_name(title)
    if isinstance(link := card.get("license_link"), str):
        writer.add_license_link(link)
    if tags := _texts(card.get("tags")) + _texts(card.get("pipeline_tag")):
        writer.add_tags(list(dict.fromkeys(tags)))
    if languages := _texts(card.get("language")):
        writer.add_languages(languages)


def _texts(stated: object) -> list[str]:
    """A text, or the texts of a list."""
    values: Iterable[object] = stated if isinstance(stated, list) else [stated]
    return [value for value in values if isinstance(value, str)]


def _add_sampling(writer: gguf.GGUFWriter, sampling: Sampling) -> None:
    """What llama.cpp's tools do where their user says nothing: as the bundle's prompt defaults, greedy at 0."""
    writer.add_sampling_temp(sampling.temperature)
    writer.add_sampling_penalty_repeat(sampling.repetition_penalty)
    if sampling.temperature:
        writer.add_sampling_top_k(sampling.top_k)
        writer.add_sampling_top_p(sampling.top_p)
        writer.add_sampling_min_p(sampling.min_p)


def _add_sizes(writer: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
    spec = checkpoint.text_decoder
    writer.add_context_length(spec.context_length)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(spec.layers)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    if spec.arch == "qwen3":  # whose heads need not be as wide as hidden_size / heads
        writer.add_key_length(spec.head_dim)
        writer.add_value_length(spec.head_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_layer_norm_rms_eps(spec.rms_norm_eps)
    writer.add_vocab_size(spec.vocab_size)
