"""Tokenizer files for a synthetic checkpoint: Qwen2.5-Omni's, Qwen3's made from it, or a small stand-in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.places import MICRO

AUDIO_TOKENS = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
# ChatML; audio and text in the order that the caller gives, no system turn of its own
CHAT_TEMPLATE = MICRO / "checkpoint" / "chat_template.jinja"
FIRST_ADDED = 151_643  # behind the vocabulary of the BPE, the same in Qwen2, Qwen2.5 and Qwen3
# Qwen3's added tokens in the order of their ids. Those of the second list are text to a decoder that skips
# special tokens.
_QWEN3_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
_QWEN3_PLAIN = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
_COPIED = ("vocab.json", "merges.txt")
_STAND_IN_TOKENS = 512
_STAND_IN_TEXTS = (
    "Write an audio caption describing the sound of a bell and a dog that barks in the rain.",
    "Which labels describe the sound? What language is spoken? Transcribe the speech into text.",
    "system user assistant: the wind, the waves, a bird, an engine, a voice, and a piece of music.",
)
_AUDIO_ATTRIBUTES = dict(zip(("audio_token", "audio_bos_token", "audio_eos_token"), AUDIO_TOKENS, strict=True))


@dataclass(frozen=True)
class AudioIds:
    """Ids that the configuration states."""

    audio: int
    im_end: int
    end_of_text: int


def write_tokenizer(folder: Path, arch: Literal["qwen2", "qwen3"], source: Path | None, rows: int) -> AudioIds:
    """Write the tokenizer files and the chat template of a decoder whose embedding has `rows` rows.

    `source` is Qwen2.5-Omni's tokenizer; without it, a small byte-level BPE stands in.

    Raises:
        ValueError: there are more tokens than rows.
    """
    if source is None or not source.is_dir():
        from benchmarks.micro.training.tokenizer import (  # imports transformers and torch
            save_tokenizer,
            train_tokenizer,
        )

        save_tokenizer(train_tokenizer(_STAND_IN_TEXTS, _STAND_IN_TOKENS), folder)
    elif arch == "qwen2":
        for path in source.iterdir():
            if path.suffix in (".json", ".txt"):
                shutil.copyfile(path, folder / path.name)
    else:
        _write_qwen3(folder, source)
    shutil.copyfile(CHAT_TEMPLATE, folder / CHAT_TEMPLATE.name)
    ids: Mapping[str, int] = _read_json(folder / "added_tokens.json")
    if max(ids.values()) >= rows:
        raise ValueError(f"the tokenizer has ids up to {max(ids.values())}, the embedding has {rows} rows")
    return AudioIds(ids[AUDIO_TOKENS[0]], ids["<|im_end|>"], ids["<|endoftext|>"])


def qwen3_added_tokens() -> list[dict[str, Any]]:
    """Qwen3's added tokens as `tokenizer.json` lists them, and the audio tokens behind them, under new ids."""
    special = {*_QWEN3_SPECIAL, *AUDIO_TOKENS}
    form = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": FIRST_ADDED + i, "content": token, **form, "special": token in special}
        for i, token in enumerate((*_QWEN3_SPECIAL, *_QWEN3_PLAIN, *AUDIO_TOKENS))
    ]


def _write_qwen3(folder: Path, source: Path) -> None:
    added = qwen3_added_tokens()
    for name in _COPIED:
        shutil.copyfile(source / name, folder / name)
    _write_json(folder / "tokenizer.json", {**_read_json(source / "tokenizer.json"), "added_tokens": added})
    _write_json(folder / "added_tokens.json", {token["content"]: token["id"] for token in added})
    facts = _read_json(source / "tokenizer_config.json") | _AUDIO_ATTRIBUTES
    facts["model_max_length"] = 131_072
    facts["added_tokens_decoder"] = {str(token["id"]): _without(token, ("id",)) for token in added}
    _write_json(folder / "tokenizer_config.json", facts)
    specials = [token["content"] for token in added if token["special"] and token["content"] != "<|endoftext|>"]
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    _write_json(folder / "special_tokens_map.json", {**ends, "additional_special_tokens": specials})


def _without(content: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
