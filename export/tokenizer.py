"""The tokenizer of a checkpoint as GGUF states it: byte-level BPE tokens by id, their kinds and the merges.

Everything is read from `tokenizer.json`, whose added tokens include the control tokens; ids of the audio
tokens are looked up by their text, since they differ between models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from dasheng_edge.runtime.errors import CheckpointFileError, CheckpointVariantError

from .checkpoint import Checkpoint, read_json
from .model_config import AddedToken, BpeModel, TokenizerFile, checked

AUDIO, AUDIO_BOS, AUDIO_EOS = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"
IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

# How Qwen2 cuts text before BPE; llama.cpp calls it "qwen2" and implements it by hand.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids, one for each row of the embedding."""

    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]
    eos_id: int  # ends a turn
    pad_id: int | None
    bos_id: int | None
    chat_template: str

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end generation, as llama.cpp finds them: the end of a turn and the end of text."""
        return frozenset(index for index, token in enumerate(self.tokens) if token in (IM_END, END_OF_TEXT))

    def id_of(self, token: str) -> int:
        """Id of a token by its text."""
        return self.tokens.index(token)


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """Read the tokenizer of a checkpoint whose embedding has `rows` rows.

    Raises:
        CheckpointFileError: a file is missing or does not parse, or there are more tokens than rows.
        CheckpointVariantError: the tokenizer is not Qwen2's kind, or lacks a token that audio needs.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointFileError(
            f"{path} is missing; save it with `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`"
        )
    again = "download it again"
    content = checked(TokenizerFile, str(path), read_json(path), again)
    _check_kind(path, content)
    model = checked(BpeModel, f"{path}: model", content.model, again)
    tokens, types = _by_id(path, model, content.added_tokens, rows)
    for token in (AUDIO, AUDIO_BOS, AUDIO_EOS, IM_START, IM_END):
        if token not in tokens:
            raise CheckpointVariantError(f"{path} has no token {token}, so no audio can be put into a prompt")
    config = read_json(folder / "tokenizer_config.json", missing_ok=True)
    generation = read_json(folder / "generation_config.json", missing_ok=True)
    return Vocabulary(
        tuple(tokens),
        tuple(types),
        tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model.merges),
        tokens.index(IM_END),
        _id_of(tokens, config.get("pad_token"), generation.get("pad_token_id")),
        _id_of(tokens, config.get("bos_token"), generation.get("bos_token_id")),
        _chat_template(folder, config),
    )


def check_audio_token(checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
    """The id that config.json gives for `<|AUDIO|>` must be the tokenizer's."""
    stated, got = checkpoint.config.get("audio_token_id"), vocabulary.id_of(AUDIO)
    if stated is not None and stated != got:
        raise CheckpointFileError(
            f"{checkpoint.folder}: config.json says audio_token_id {stated}, tokenizer.json has {AUDIO} at {got}; "
            "take both from one revision"
        )


def _check_kind(path: Path, content: TokenizerFile) -> None:
    if content.model.get("type", "BPE") != "BPE":
        raise CheckpointVariantError(f"{path} is not a BPE tokenizer, expected Qwen2's byte-level BPE")
    cutter = content.pre_tokenizer
    steps = (cutter.pretokenizers or (cutter,)) if cutter else ()
    patterns = [step.pattern.get("Regex") for step in steps if step.type == "Split"]
    if patterns != [QWEN2_PATTERN]:
        raise CheckpointVariantError(
            f"{path} cuts text by {patterns or 'no pattern'}, expected Qwen2's pattern; llama.cpp cuts it so"
        )
    normalizer = content.normalizer.type if content.normalizer else None
    if normalizer != "NFC":  # llama.cpp normalises nothing; the runtime does it, as Qwen2's tokenizer does
        raise CheckpointVariantError(f"{path} normalises text by {normalizer}, expected NFC as in Qwen2's tokenizer")


def _by_id(
    path: Path, model: BpeModel, added_tokens: Sequence[AddedToken], rows: int
) -> tuple[list[str], list[TokenType]]:
    """Tokens by id; ids without a token become `[PADn]`, as in llama.cpp's own converter."""
    named = {index: token for token, index in model.vocab.items()}
    kinds = dict.fromkeys(named, TokenType.NORMAL)
    for added in added_tokens:
        named[added.id] = added.content
        kinds[added.id] = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
    if (largest := max(named, default=0)) >= rows:
        raise CheckpointFileError(
            f"{path} has token ids up to {largest}, the embedding has {rows} rows; take both from one revision"
        )
    tokens = [named.get(index, f"[PAD{index}]") for index in range(rows)]
    return tokens, [kinds.get(index, TokenType.UNUSED) for index in range(rows)]


def _id_of(tokens: list[str], token: object, stated: object) -> int | None:
    """Id of a token that tokenizer_config.json names, as text or as an object with "content"; else the one
    that generation_config.json states.
    """
    if isinstance(token, dict):
        token = token.get("content")
    if isinstance(token, str) and token in tokens:
        return tokens.index(token)
    return stated if isinstance(stated, int) and 0 <= stated < len(tokens) else None


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str:
    """`chat_template.jinja`, or where older checkpoints keep it."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointFileError(f"cannot read {path}: {error}; download it again") from error
    for source in (config, read_json(folder / "chat_template.json", missing_ok=True)):
        if isinstance(template := source.get("chat_template"), str):
            return template
    raise CheckpointFileError(
        f"{folder} has no chat template: expected chat_template.jinja, or chat_template in tokenizer_config.json"
    )
