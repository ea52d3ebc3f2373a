"""The tokenizer's facts for GGUF, and refusals of tokenizers that llama.cpp would read otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType

from dasheng_edge.export.checkpoint import open_checkpoint
from dasheng_edge.export.tokenizer import check_audio_token, read_vocabulary
from dasheng_edge.runtime.errors import CheckpointFileError, CheckpointVariantError
from tests.tiny_checkpoint import CHAT_TEMPLATE, CONTROL_TOKENS, ROWS

pytestmark = pytest.mark.torch


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def change(path: Path, edit: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text("utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_there_is_a_token_for_each_row(tiny_checkpoint: Path) -> None:
    vocabulary = read_vocabulary(tiny_checkpoint, ROWS)
    first = vocabulary.id_of("<|endoftext|>")

    assert len(vocabulary.tokens) == len(vocabulary.types) == ROWS
    assert vocabulary.tokens[first : first + 6] == CONTROL_TOKENS
    assert set(vocabulary.types[first : first + 6]) == {TokenType.CONTROL}
    assert set(vocabulary.types[:first]) == {TokenType.NORMAL}
    assert vocabulary.tokens[-1] == f"[PAD{ROWS - 1}]"
    assert set(vocabulary.types[first + 6 :]) == {TokenType.UNUSED}


def test_roles_are_found_by_text(tiny_checkpoint: Path) -> None:
    vocabulary = read_vocabulary(tiny_checkpoint, ROWS)

    assert vocabulary.tokens[vocabulary.eos_id] == "<|im_end|>"
    assert vocabulary.pad_id is not None
    assert vocabulary.tokens[vocabulary.pad_id] == "<|endoftext|>"
    assert vocabulary.bos_id is None
    assert vocabulary.stop_ids == {vocabulary.eos_id, vocabulary.pad_id}
    assert vocabulary.chat_template == CHAT_TEMPLATE


def test_added_words_are_not_control_tokens(checkpoint: Path) -> None:
    def add(content: Any) -> None:
        content["added_tokens"].append(content["added_tokens"][0] | {"id": 400, "content": "<call>", "special": False})

    change(checkpoint / "tokenizer.json", add)
    vocabulary = read_vocabulary(checkpoint, ROWS)

    assert vocabulary.tokens[400] == "<call>"
    assert vocabulary.types[400] == TokenType.USER_DEFINED


def test_older_layouts_are_read(checkpoint: Path) -> None:
    """Merges as "a b", tokens as objects, the chat template in tokenizer_config.json or chat_template.json."""
    merges = read_vocabulary(checkpoint, ROWS).merges
    (checkpoint / "chat_template.jinja").unlink()
    change(
        checkpoint / "tokenizer.json",
        lambda content: content["model"].update(merges=[" ".join(pair) for pair in content["model"]["merges"]]),
    )
    change(
        checkpoint / "tokenizer_config.json",
        lambda content: content.update(bos_token={"content": "<|endoftext|>"}, chat_template="in the config"),
    )
    vocabulary = read_vocabulary(checkpoint, ROWS)
    assert vocabulary.merges == merges
    assert vocabulary.bos_id == vocabulary.pad_id
    assert vocabulary.chat_template == "in the config"

    (checkpoint / "tokenizer_config.json").unlink()
    (checkpoint / "chat_template.json").write_text('{"chat_template": "in a file"}')
    (checkpoint / "generation_config.json").write_text('{"bos_token_id": 381, "pad_token_id": 9999}')
    vocabulary = read_vocabulary(checkpoint, ROWS)
    assert vocabulary.chat_template == "in a file"
    assert (vocabulary.bos_id, vocabulary.pad_id) == (381, None)


def test_a_missing_file_is_named(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointFileError, match="has no chat template"):
        read_vocabulary(checkpoint, ROWS)
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(CheckpointFileError, match=r"tokenizer\.json is missing"):
        read_vocabulary(checkpoint, ROWS)


def test_more_tokens_than_rows_are_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointFileError, match="token ids up to 386, the embedding has 300 rows"):
        read_vocabulary(tiny_checkpoint, 300)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content["model"].update(type="Unigram"), "is not a BPE tokenizer"),
        (lambda content: content.update(pre_tokenizer=None), "cuts text by no pattern"),
        (lambda content: content.update(normalizer=None), "normalises text by None, expected NFC"),
        (
            lambda content: content["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\p{N}{1,3}"),
            "expected Qwen2's pattern",
        ),
        (lambda content: content["added_tokens"].pop(3), r"has no token <\|AUDIO\|>"),
    ],
)
def test_another_kind_of_tokenizer_is_refused(checkpoint: Path, edit: Callable[[Any], object], message: str) -> None:
    change(checkpoint / "tokenizer.json", edit)
    with pytest.raises(CheckpointVariantError, match=message):
        read_vocabulary(checkpoint, ROWS)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.pop("model"), r"tokenizer\.json: model is missing; download it again"),
        (lambda content: content["model"].pop("merges"), r"tokenizer\.json: model: merges is missing; download"),
        (lambda content: content["model"].pop("vocab"), "model: vocab is missing"),
        (lambda content: content["model"]["merges"].insert(0, ["a"]), r"model: merges\.0\..* is \['a'\], "),
        (lambda content: content["model"]["merges"].insert(0, 7), r"model: merges\.0\..* is 7, expected"),
        (lambda content: content["model"]["vocab"].update(x="7"), r"model: vocab\.x is '7', expected a valid integer"),
        (lambda content: content["model"]["vocab"].update(x=-1), r"model: vocab\.x is -1, expected greater than or"),
        (lambda content: content["added_tokens"][0].pop("id"), r"added_tokens\.0\.id is missing"),
        (lambda content: content.update(normalizer=[]), r"normalizer is \[\], expected a JSON object"),
        (lambda content: content.update(pre_tokenizer=3), "pre_tokenizer is 3, expected a JSON object"),
        (
            lambda content: content["pre_tokenizer"]["pretokenizers"][0].update(pattern=None),
            r"pre_tokenizer\.pretokenizers\.0\.pattern is None, expected a valid dictionary",
        ),
    ],
)
def test_a_broken_tokenizer_file_is_refused(checkpoint: Path, edit: Callable[[Any], object], message: str) -> None:
    change(checkpoint / "tokenizer.json", edit)
    with pytest.raises(CheckpointFileError, match=message):
        read_vocabulary(checkpoint, ROWS)


def test_a_chat_template_that_is_no_text_is_refused(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointFileError, match=r"cannot read .*chat_template\.jinja"):
        read_vocabulary(checkpoint, ROWS)


def test_the_audio_token_is_cross_checked(checkpoint: Path) -> None:
    vocabulary = read_vocabulary(checkpoint, ROWS)
    check_audio_token(open_checkpoint(checkpoint), vocabulary)
    change(checkpoint / "config.json", lambda content: content.update(audio_token_id=151_646))
    with pytest.raises(CheckpointFileError, match=r"audio_token_id 151646, tokenizer\.json has <\|AUDIO\|> at 384"):
        check_audio_token(open_checkpoint(checkpoint), vocabulary)
