"""The tokenizer of a checkpoint as GGUF states it: byte-level BPE tokens by id, their kinds and the merges.

Everything is read from `tokenizer.json`, whose added tokens include the control tokens; ids of the audio
tokens are looked up by their text, since they differ between models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from gguf import TokenType
from pydantic import Field, NonNegativeInt

from dasheng_edge.export.files.json_files import StatedFields, checked, read_json
from dasheng_edge.export.files.names import GENERATION, TOKENIZER, TOKENIZER_CONFIG
from dasheng_edge.export.prompt.chat_template import read_audio_tokens, read_chat_template
from dasheng_edge.runtime.errors import CheckpointFileError, CheckpointVariantError
from dasheng_edge.runtime.gguf.check import MAX_SPECIAL, MAX_SPECIAL_BYTES

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

# How Qwen2 cuts text before BPE; llama.cpp calls it "qwen2" and implements it by hand.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# llama.cpp ends generation at these, whatever a model says: tokens that it knows as ends by their text ...
ENDS_BY_TEXT = frozenset({
    IM_END, END_OF_TEXT, "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>", "<end_of_turn>", "<turn|>",
    "<end_of_utterance>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<eos>", "</s>", "<|return|>", "<|call|>", "<|calls|>",
    "<|flush|>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
    # ... and those that pad or part files in code.
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
})  # fmt: skip
# It takes these for control tokens, too, and warns where a file says otherwise, as Qwen3's tokenizer.json does.
CONTROL_BY_TEXT = ENDS_BY_TEXT | {"<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"}


class Step(StatedFields):
    """How one pre-tokenizer cuts text."""

    type: str = ""
    pattern: dict[str, str] = Field(default={})


class PreTokenizer(Step):
    """One step, or a sequence of them."""

    pretokenizers: tuple[Step, ...] | None = Field(default=None, strict=False)


class Normalizer(StatedFields):
    """How text is normalised."""

    type: str


class AddedToken(StatedFields):
    """A token beside the vocabulary."""

    id: NonNegativeInt
    content: str
    special: bool = False


class TokenizerFile(StatedFields):
    """`tokenizer.json`; `model` is read as `BpeModel` once it is known to be one."""

    model: dict[str, Any]
    pre_tokenizer: PreTokenizer | None = None
    normalizer: Normalizer | None = None
    added_tokens: list[AddedToken] = Field(default=[])


class BpeModel(StatedFields):
    """Tokens by text, and merges, as "a b" or as ["a", "b"]."""

    vocab: dict[str, NonNegativeInt]
    merges: list[str | Annotated[list[str], Field(min_length=2, max_length=2)]]


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids, one for each row of the embedding."""

    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]
    eos_id: int  # ends a turn
    eot_id: int  # another end that generation_config.json states and llama.cpp does not know by its text, else eos_id
    eom_id: int | None  # and one more
    pad_id: int | None
    bos_id: int | None
    chat_template: str

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end generation in llama.cpp: those that it finds by text, and those that the GGUF names."""
        named = {self.eos_id, self.eot_id, self.eom_id} - {None}
        return frozenset(i for i, token in enumerate(self.tokens) if token in ENDS_BY_TEXT or i in named)


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """Read the tokenizer of a checkpoint whose embedding has `rows` rows.

    Raises:
        CheckpointFileError: a file is missing or does not parse, or there are more tokens than rows.
        CheckpointVariantError: the tokenizer is not Qwen2's kind, or lacks a token that audio needs.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise CheckpointFileError(
            f"{path} is missing; save it with `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`"
        )
    again = "download it again"
    content = checked(TokenizerFile, str(path), read_json(path), again)
    _check_kind(path, content)
    model = checked(BpeModel, f"{path}: model", content.model, again)
    tokens, types = _by_id(path, model, content.added_tokens, rows)
    audio = read_audio_tokens(folder)
    for token in (audio.audio, audio.bos, audio.eos, IM_START, IM_END):
        if token not in tokens:
            raise CheckpointVariantError(f"{path} has no token {token}, so no audio can be put into a prompt")
    config = read_json(folder / TOKENIZER_CONFIG, missing_ok=True)
    generation = read_json(folder / GENERATION, missing_ok=True)
    ends = _other_ends(folder, tokens, generation.get("eos_token_id"))
    return Vocabulary(
        tuple(tokens),
        tuple(types),
        tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model.merges),
        tokens.index(IM_END),
        ends[0] if ends else tokens.index(IM_END),
        ends[1] if len(ends) > 1 else None,
        _id_of(tokens, config.get("pad_token"), generation.get("pad_token_id")),
        _id_of(tokens, config.get("bos_token"), generation.get("bos_token_id")),
        read_chat_template(folder).text,
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
    """Tokens by id; ids without a token become `[PADn]`, as in llama.cpp's own converter.

    So does an id of the vocabulary whose text an added token has under another id: tokenizers find the added one,
    and llama.cpp ends the process when two tokens have one text.
    """
    elsewhere = {added.content: added.id for added in added_tokens}
    named = {index: token for token, index in model.vocab.items() if elsewhere.get(token, index) == index}
    kinds = dict.fromkeys(named, TokenType.NORMAL)
    for added in added_tokens:
        named[added.id] = added.content
        control = added.special or added.content in CONTROL_BY_TEXT
        kinds[added.id] = TokenType.CONTROL if control else TokenType.USER_DEFINED
    if (largest := max(named, default=0)) >= rows:
        raise CheckpointFileError(
            f"{path} has token ids up to {largest}, the embedding has {rows} rows; take both from one revision"
        )
    special = [token for index, token in named.items() if kinds[index] != TokenType.NORMAL]
    long = next((token for token in special if len(token.encode("utf-8", "replace")) > MAX_SPECIAL_BYTES), "")
    if long or len(special) > MAX_SPECIAL:
        what = f"the added token {long[:40]!r}..." if long else f"{len(special)} added tokens"
        raise CheckpointVariantError(
            f"{path} has {what}; a bundle holds at most {MAX_SPECIAL} of {MAX_SPECIAL_BYTES} bytes, since prompts are "
            "searched for each of them: leave out those that the model was not trained on"
        )
    tokens = [named.get(index, f"[PAD{index}]") for index in range(rows)]
    if len(set(tokens)) < rows:
        (twice, _), *_ = Counter(tokens).most_common(1)
        raise CheckpointFileError(f"{path} has the token {twice} twice, expected one id for each; download it again")
    return tokens, [kinds.get(index, TokenType.UNUSED) for index in range(rows)]


def _other_ends(folder: Path, tokens: list[str], stated: object) -> list[int]:
    """Ids at which transformers ends generation and llama.cpp would not; a GGUF can name two of them."""
    listed: list[object] = stated if isinstance(stated, list) else [] if stated is None else [stated]
    ids = [
        index for index in listed if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < len(tokens)
    ]
    if len(ids) < len(listed):
        raise CheckpointFileError(
            f"{folder / GENERATION}: eos_token_id is {stated!r}, expected ids below {len(tokens)}; "
            "take it from the revision of the weights"
        )
    ends = [index for index in dict.fromkeys(ids) if tokens[index] not in ENDS_BY_TEXT]
    if len(ends) > 2:  # eot and eom
        names = ", ".join(tokens[index] for index in ends)
        raise CheckpointVariantError(
            f"{folder}: generation ends at {names} besides {IM_END} and {END_OF_TEXT}, a GGUF can name two more; "
            "leave those that the model never writes out of eos_token_id in generation_config.json"
        )
    return ends


def _id_of(tokens: list[str], token: object, stated: object) -> int | None:
    """Id of a token that tokenizer_config.json names, as text or as an object with "content"; else the one
    that generation_config.json states.
    """
    if isinstance(token, dict):
        token = token.get("content")
    if isinstance(token, str) and token in tokens:
        return tokens.index(token)
    return stated if isinstance(stated, int) and 0 <= stated < len(tokens) else None
