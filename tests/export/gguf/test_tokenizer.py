"""The tokenizer's facts for GGUF, and refusals of tokenizers that llama.cpp would read otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType

from dasheng_edge.export.gguf.tokenizer import ENDS_BY_TEXT, Vocabulary, read_vocabulary
from dasheng_edge.runtime.errors import CheckpointFileError, CheckpointVariantError
from tests.fixtures.tiny_checkpoint import CHAT_TEMPLATE, CONTROL_TOKENS, ROWS
from tests.fixtures.vocabulary_decoder import vocabulary_decoder

QWEN = Path(__file__).resolve().parents[4] / "shared" / "data" / "qwen2_5_omni_tokenizer"
needs_qwen = pytest.mark.skipif(not QWEN.is_dir(), reason="no shared data: Qwen2.5-Omni's tokenizer")


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def change(path: Path, edit: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text("utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_there_is_a_token_for_each_row(tiny_checkpoint: Path) -> None:
    vocabulary = read_vocabulary(tiny_checkpoint, ROWS)
    first = vocabulary.tokens.index("<|endoftext|>")

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


@pytest.mark.parametrize(("count", "length", "said"), [(5000, 9, "50.. added tokens"), (1, 257, "token '<xxx")])
def test_added_tokens_that_no_bundle_holds_are_refused(checkpoint: Path, count: int, length: int, said: str) -> None:
    def add(content: Any) -> None:
        content["added_tokens"] += [
            {"id": 386 + index, "content": f"<{'x' * length}{index}>"} for index in range(count)
        ]

    change(checkpoint / "tokenizer.json", add)
    with pytest.raises(CheckpointVariantError, match=f"{said}.*holds at most 4096 of 256 bytes"):
        read_vocabulary(checkpoint, 10_000)


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


def ends_in_llama_cpp(vocabulary: Vocabulary, path: Path) -> set[int]:
    """Ids at which llama.cpp ends generation, when it has read this vocabulary from a GGUF without tensors."""
    decoder = vocabulary_decoder(vocabulary, path)
    try:
        return {token for token in range(decoder.n_vocab) if decoder.is_end(token)}
    finally:
        decoder.close()


def stop_at(folder: Path, *ids: int) -> None:
    change(folder / "generation_config.json", lambda content: content.update(eos_token_id=list(ids)))


def test_the_ends_that_are_stated_are_llama_cpps(checkpoint: Path, tmp_path: Path) -> None:
    usual = read_vocabulary(checkpoint, ROWS).stop_ids
    stop_at(checkpoint, 383, 300, 381, 301, 300)
    vocabulary = read_vocabulary(checkpoint, ROWS)

    assert (vocabulary.eos_id, vocabulary.eot_id, vocabulary.eom_id) == (383, 300, 301)
    assert vocabulary.stop_ids == usual | {300, 301} == ends_in_llama_cpp(vocabulary, tmp_path / "x.gguf")


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("text", sorted(ENDS_BY_TEXT - {"<|im_end|>", "<|endoftext|>"}))
def test_ends_by_text_are_llama_cpps(special: bool, text: str, checkpoint: Path, tmp_path: Path) -> None:
    def add(content: Any) -> None:
        content["added_tokens"].append(content["added_tokens"][0] | {"id": 400, "content": text, "special": special})

    change(checkpoint / "tokenizer.json", add)
    vocabulary = read_vocabulary(checkpoint, ROWS)

    assert vocabulary.stop_ids == {381, 383, 400} == ends_in_llama_cpp(vocabulary, tmp_path / "x.gguf")


def test_no_other_control_token_is_an_end(checkpoint: Path, tmp_path: Path) -> None:
    texts = ["<think>", "</think>", "<tool_call>", "<|vision_start|>", "<|object_ref_start|>", "<|fim_prefix|>", "<s>"]

    def add(content: Any) -> None:
        first = content["added_tokens"][0]
        content["added_tokens"] += [first | {"id": 400 + i, "content": text} for i, text in enumerate(texts)]

    change(checkpoint / "tokenizer.json", add)
    vocabulary = read_vocabulary(checkpoint, ROWS)

    assert vocabulary.stop_ids == {381, 383} == ends_in_llama_cpp(vocabulary, tmp_path / "x.gguf")


@pytest.mark.parametrize("text", ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_sep|>"])
def test_what_llama_cpp_takes_for_control_tokens_is_stated_so(text: str, checkpoint: Path) -> None:
    """Qwen3's tokenizer.json has them as words."""

    def add(content: Any) -> None:
        content["added_tokens"].append(content["added_tokens"][0] | {"id": 400, "content": text, "special": False})

    change(checkpoint / "tokenizer.json", add)
    assert read_vocabulary(checkpoint, ROWS).types[400] == TokenType.CONTROL


@pytest.mark.slow
@needs_qwen
def test_the_real_ends_are_llama_cpps(tmp_path: Path) -> None:
    for file in QWEN.glob("*.json"):
        shutil.copy(file, tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [151645, 151643]}', encoding="utf-8")
    vocabulary = read_vocabulary(tmp_path, 152_064)
    by_name = {vocabulary.tokens[token] for token in vocabulary.stop_ids}

    # </s> is a piece of text there, which the pre-tokenizer never leaves whole; llama.cpp takes it for an end.
    assert by_name == {"<|im_end|>", "<|endoftext|>", "</s>"}
    assert vocabulary.stop_ids == ends_in_llama_cpp(vocabulary, tmp_path / "x.gguf")
    assert (vocabulary.eos_id, vocabulary.eot_id, vocabulary.eom_id) == (151_645, 151_645, None)


@pytest.mark.parametrize("stated", [448, -1, "<|im_end|>", [383, True], [383, 1.0], {"id": 3}])
def test_an_end_that_is_no_id_is_refused(stated: object, checkpoint: Path) -> None:
    change(checkpoint / "generation_config.json", lambda content: content.update(eos_token_id=stated))
    with pytest.raises(
        CheckpointFileError, match=r"generation_config\.json: eos_token_id is .*, expected ids below 448"
    ):
        read_vocabulary(checkpoint, ROWS)


def test_more_ends_than_a_gguf_can_name_are_refused(checkpoint: Path) -> None:
    stop_at(checkpoint, 383, 300, 301, 302)
    with pytest.raises(CheckpointVariantError, match=r"generation ends at .* besides <\|im_end\|> and <\|endoftext\|>"):
        read_vocabulary(checkpoint, ROWS)


def test_one_end_or_none_may_be_stated(checkpoint: Path) -> None:
    change(checkpoint / "generation_config.json", lambda content: content.update(eos_token_id=383))
    one = read_vocabulary(checkpoint, ROWS)
    (checkpoint / "generation_config.json").unlink()

    assert read_vocabulary(checkpoint, ROWS).stop_ids == one.stop_ids == {381, 383}


def test_a_text_with_two_ids_keeps_the_added_one(checkpoint: Path, tmp_path: Path) -> None:
    """As tokenizers does; llama.cpp would end the process."""
    change(checkpoint / "tokenizer.json", lambda content: content["model"]["vocab"].update({"<|AUDIO|>": 400}))
    vocabulary = read_vocabulary(checkpoint, ROWS)

    assert vocabulary.tokens.index("<|AUDIO|>") == 384
    assert (vocabulary.tokens[400], vocabulary.types[400]) == ("[PAD400]", TokenType.UNUSED)
    assert ends_in_llama_cpp(vocabulary, tmp_path / "x.gguf") == vocabulary.stop_ids


def test_a_text_that_stays_twice_is_refused(checkpoint: Path) -> None:
    change(checkpoint / "tokenizer.json", lambda content: content["model"]["vocab"].update({"[PAD401]": 400}))
    with pytest.raises(CheckpointFileError, match=r"has the token \[PAD401\] twice"):
        read_vocabulary(checkpoint, ROWS)


def test_audio_tokens_have_the_names_that_the_processor_knows(checkpoint: Path) -> None:
    change(checkpoint / "tokenizer_config.json", lambda content: content.update(audio_token="<|sound|>"))
    with pytest.raises(CheckpointVariantError, match=r"has no token <\|sound\|>"):
        read_vocabulary(checkpoint, ROWS)
