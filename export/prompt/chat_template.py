"""What the side files of a checkpoint say about prompts: its chat template, and what it calls its audio tokens.

Both are looked for where transformers' processors look, in the same order, and nothing is executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dasheng_edge.export.files.json_files import read_json, read_side_file
from dasheng_edge.export.files.names import LEGACY_TEMPLATE, PROCESSOR, SPECIAL_TOKENS, TEMPLATE, TOKENIZER_CONFIG
from dasheng_edge.runtime.errors import CheckpointFileError

DEFAULT_TEMPLATE = "additional_chat_templates/default.jinja"


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template and the file of the checkpoint that holds it."""

    text: str
    source: str


@dataclass(frozen=True)
class AudioTokens:
    """Texts of the token that stands for audio and of the two around it."""

    audio: str = "<|AUDIO|>"
    bos: str = "<|audio_bos|>"
    eos: str = "<|audio_eos|>"


def read_chat_template(folder: Path) -> ChatTemplate:
    """The chat template that a processor loaded from this folder uses; of several, the one called "default".

    Raises:
        CheckpointFileError: the folder has no chat template, or a file does not parse.
    """
    legacy = read_json(folder / LEGACY_TEMPLATE, missing_ok=True)
    if text := _chosen(folder, LEGACY_TEMPLATE, legacy.get("chat_template")):
        return ChatTemplate(text, LEGACY_TEMPLATE)
    for name in (TEMPLATE, DEFAULT_TEMPLATE):
        if (folder / name).is_file() or (folder / name).is_symlink():  # one that leads nowhere is an error
            return ChatTemplate(_read_text(folder / name), name)
    for name in (PROCESSOR, TOKENIZER_CONFIG):
        if text := _chosen(folder, name, read_json(folder / name, missing_ok=True).get("chat_template")):
            return ChatTemplate(text, name)
    raise CheckpointFileError(
        f"{folder} has no chat template: expected {TEMPLATE}, or chat_template in {TOKENIZER_CONFIG}; take it from the "
        "repository that the weights come from"
    )


def read_audio_tokens(folder: Path) -> AudioTokens:
    """The audio tokens by the names that processors know them by; what is not stated has MiDashengLM's text.

    Raises:
        CheckpointFileError: a file does not parse, or states something that is no text.
    """
    usual = AudioTokens()
    return AudioTokens(
        next(_stated(folder, "audio_token"), usual.audio),
        next(_stated(folder, "audio_bos_token"), usual.bos),
        next(_stated(folder, "audio_eos_token"), usual.eos),
    )


def _chosen(folder: Path, name: str, stated: object) -> str:
    """One template, or the default one of a mapping or of a list of `{"name", "template"}`; "" where none is stated."""
    if stated is None:
        return ""
    if isinstance(stated, list) and all(isinstance(item, dict) for item in stated):
        stated = {item.get("name"): item.get("template") for item in stated}
    if isinstance(stated, dict):
        stated = stated.get("default", list(stated))
    if isinstance(stated, str):
        return stated
    raise CheckpointFileError(
        f'{folder / name}: chat_template is {stated!r}, expected a text or one called "default"; put the template '
        f"into {TEMPLATE}"
    )


def _read_text(path: Path) -> str:
    try:
        return read_side_file(path).decode("utf-8-sig")
    except ValueError as error:
        raise CheckpointFileError(f"cannot read {path}: {error}; download it again") from error


def _stated(folder: Path, key: str) -> Iterator[str]:
    """What each file that may says about a token, as text or as an object with "content"; the processor's first."""
    tokenizer = read_json(folder / TOKENIZER_CONFIG, missing_ok=True)
    extra = tokenizer.get("extra_special_tokens")
    named = tokenizer.get("model_specific_special_tokens")  # transformers 5
    places = {
        PROCESSOR: read_json(folder / PROCESSOR, missing_ok=True),
        f"{TOKENIZER_CONFIG}: extra_special_tokens": extra if isinstance(extra, dict) else {},
        f"{TOKENIZER_CONFIG}: model_specific_special_tokens": named if isinstance(named, dict) else {},
        TOKENIZER_CONFIG: tokenizer,
        SPECIAL_TOKENS: read_json(folder / SPECIAL_TOKENS, missing_ok=True),
    }
    for where, stated in places.items():
        told = stated.get(key)
        token = told.get("content") if isinstance(told, dict) else told
        if token and isinstance(token, str):
            yield token
        elif told is not None:
            raise CheckpointFileError(
                f'{folder / where}: {key} is {told!r}, expected text, or an object with "content"; take the file from '
                "the revision of the weights"
            )
