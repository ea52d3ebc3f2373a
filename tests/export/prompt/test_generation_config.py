"""generation_config.json: sampling as transformers reads it, answers of a sane length, nothing strange let through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dasheng_edge.export.prompt.facts import PROMPT_DEFAULTS
from dasheng_edge.export.prompt.generation_config import LONGEST, GenerationConfig, read_generation_config
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.errors import CheckpointFileError


def read(folder: Path, stated: object) -> tuple[GenerationConfig, tuple[str, ...]]:
    text = stated if isinstance(stated, str) else json.dumps(stated)
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    return read_generation_config(folder)


@pytest.mark.parametrize(
    "stated",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1},
        {"do_sample": True, "top_k": None, "top_p": None, "temperature": None, "repetition_penalty": None},
        {"do_sample": True, "top_p": 1, "temperature": 2, "min_p": None},
        {"do_sample": False, "repetition_penalty": 1.2},
        {"repetition_penalty": 1.05, "top_p": 0.8, "top_k": 5},
        {"no_repeat_ngram_size": 3},
        {"do_sample": True, "no_repeat_ngram_size": 4},
        {"do_sample": False, "no_repeat_ngram_size": None},
        {},
    ],
)
@pytest.mark.filterwarnings("ignore")  # transformers finds fault with filters where nothing is sampled
def test_sampling_is_what_transformers_reads(stated: dict[str, Any], tmp_path: Path) -> None:
    from transformers import GenerationConfig

    ours = read(tmp_path, stated)[0]
    theirs: Any = GenerationConfig.from_pretrained(str(tmp_path))
    ngrams = theirs.no_repeat_ngram_size or 0
    wanted = Sampling(repetition_penalty=theirs.repetition_penalty or 1.0, no_repeat_ngram_size=ngrams)
    if theirs.do_sample:
        wanted = Sampling(
            temperature=1.0 if theirs.temperature is None else theirs.temperature, top_k=theirs.top_k or 0,
            top_p=theirs.top_p or 1.0, min_p=theirs.min_p or 0.0, repetition_penalty=theirs.repetition_penalty or 1.0,
            no_repeat_ngram_size=ngrams,
        )  # fmt: skip
    assert ours.sampling(Sampling()) == wanted


def test_a_model_that_is_sampled_by_default(tmp_path: Path) -> None:
    usual = PROMPT_DEFAULTS["0.6b"].sampling
    assert read_generation_config(tmp_path)[0].sampling(usual) == usual  # there is no file
    wanted = usual.model_copy(update={"top_p": 0.5, "repetition_penalty": 1.1})
    assert read(tmp_path, {"top_p": 0.5, "repetition_penalty": 1.1})[0].sampling(usual) == wanted
    assert read(tmp_path, {"do_sample": False})[0].sampling(usual) == Sampling()


@pytest.mark.parametrize(
    ("stated", "tokens"),
    [
        ({}, 128),
        ({"max_new_tokens": 64, "max_length": 9}, 64),
        ({"max_new_tokens": None, "max_length": 256}, 256),
        ({"max_length": 32768}, LONGEST),
    ],
)
def test_length_of_answers(stated: dict[str, object], tokens: int, tmp_path: Path) -> None:
    assert read(tmp_path, stated)[0].new_tokens(128) == tokens


def test_fields_that_are_not_used_are_told(tmp_path: Path) -> None:
    assert read(tmp_path, {"num_beams": 4, "typical_p": 1.0, "stop_strings": None, "eos_token_id": 3})[1] == (
        "num_beams",
    )


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ('{"temperature": NaN}', "temperature is nan, expected a finite number"),
        ('{"top_p": Infinity}', "top_p is inf, expected"),
        ('{"temperature": true}', "temperature is True, expected a valid number"),
        ('{"top_k": 2.5}', r"top_k is 2\.5, expected a valid integer"),
        ('{"top_k": -1}', "top_k is -1, expected greater than or equal to 0"),
        ('{"top_p": 7, "do_sample": true}', "top_p is 7, expected less than or equal to 1"),
        ('{"min_p": "0.1"}', r"min_p is '0\.1', expected a valid number"),
        ('{"do_sample": 1}', "do_sample is 1, expected a valid boolean"),
        ('{"repetition_penalty": 0}', "repetition_penalty is 0, expected greater than 0"),
        ('{"max_new_tokens": true}', "max_new_tokens is True, expected a valid integer"),
        ('{"max_length": 0}', "max_length is 0, expected greater than 0"),
        ("[1]", "holds a list, expected a JSON object"),
        ("{", "Expecting property name"),
    ],
)
def test_impossible_values_are_refused(stated: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointFileError, match=rf"generation_config\.json.* {message}"):
        read(tmp_path, stated)
