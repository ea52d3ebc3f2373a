"""The micro model's tokenizer: byte-level BPE as in Qwen2, trained on the training captions.

Normaliser, pre-tokeniser and decoder are those of the published Qwen2 tokenizer, so that any UTF-8 text
has ids; only the merges are our own, and the control tokens (by the same strings) follow the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

if TYPE_CHECKING:
    from transformers import Qwen2TokenizerFast

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
AUDIO, AUDIO_BOS, AUDIO_EOS = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"
CONTROL_TOKENS = (END_OF_TEXT, IM_START, IM_END, AUDIO, AUDIO_BOS, AUDIO_EOS)  # in the order of their ids

# Qwen2's: words with the blank before them, digits one by one, runs of signs, line ends.
PRE_TOKENIZER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# ChatML. A content is text, or a list of {"type": "text" | "audio"} items whose order is kept.
CHAT_TEMPLATE = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'audio' -%}
{{- '<|audio_bos|><|AUDIO|><|audio_eos|>' -}}
{%- elif item['type'] == 'text' -%}
{{- item['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def byte_level(model: BPE) -> Tokenizer:
    """A BPE model between Qwen2's normaliser, pre-tokeniser and decoder."""
    backend = Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRE_TOKENIZER_PATTERN), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Qwen2TokenizerFast:
    """Byte-level BPE of at most `vocabulary` tokens, control tokens included."""
    backend = byte_level(BPE())
    trainer = BpeTrainer(
        vocab_size=vocabulary - len(CONTROL_TOKENS),
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return as_qwen2(backend, CONTROL_TOKENS)


def as_qwen2(backend: Tokenizer, control: Sequence[str], max_length: int = 4096) -> Qwen2TokenizerFast:
    """With the control tokens, behind the vocabulary if they are not in it, as transformers' tokenizer of Qwen2."""
    from transformers import Qwen2TokenizerFast

    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return Qwen2TokenizerFast(
        tokenizer_object=backend,
        unk_token=cast("str", None),  # as Qwen2: bytes need none; the annotation forgets it
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=list(control[1:]),
        extra_special_tokens={"audio_token": AUDIO, "audio_bos_token": AUDIO_BOS, "audio_eos_token": AUDIO_EOS},
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
    )


def save_tokenizer(tokenizer: Qwen2TokenizerFast, folder: Path) -> None:
    """Writes the six files of the Hugging Face layout, the template as a file of its own."""
    tokenizer.save_pretrained(str(folder))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def token_id(tokenizer: Qwen2TokenizerFast, token: str) -> int:
    """Id of one token of the vocabulary."""
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number


def prompt_ids(tokenizer: Qwen2TokenizerFast, prompt: str, audio_tokens: int) -> list[int]:
    """Ids of a user turn (audio, then text) up to where the answer starts.

    `<|AUDIO|>` is repeated once per audio embedding, which then replaces that token's own embedding.
    """
    turn: dict[str, Any] = {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": prompt}]}
    text = str(tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True))
    ids: list[int] = tokenizer.encode(text.replace(AUDIO, AUDIO * audio_tokens))
    return ids
