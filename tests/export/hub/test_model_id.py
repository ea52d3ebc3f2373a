"""Names of models as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dasheng_edge.export.hub.model_id import ModelId, parse_model_id
from dasheng_edge.export.variants.table import EXPORTABLE
from dasheng_edge.runtime.errors import CheckpointNotFoundError

NAME = "mispeech/midashenglm-7b-1021-bf16"


@pytest.mark.parametrize("name", EXPORTABLE)
def test_published_names(name: str) -> None:
    assert parse_model_id(name) == ModelId(name)
    assert parse_model_id(name).model == name.removeprefix("mispeech/")


@pytest.mark.parametrize(
    ("address", "revision"),
    [
        (f"https://huggingface.co/{NAME}", None),
        (f" https://huggingface.co/{NAME}/ ", None),
        (f"HTTPS://somebody@HuggingFace.co/{NAME}?library=transformers#usage", None),
        (f"huggingface.co/{NAME}", None),
        (f"huggingface.co/{NAME}/tree/main", "main"),
        (f"https://huggingface.co/{NAME}/tree/main", "main"),
        (f"https://huggingface.co/{NAME}/tree/refs%2Fpr%2F3", "refs/pr/3"),
        (f"https://huggingface.co/{NAME}/blob/v1/config.json", "v1"),
        (f"https://huggingface.co/{NAME}/resolve/v1/config.json?download=true", "v1"),
        (f"https://huggingface.co/{NAME}/discussions/3", None),
    ],
)
def test_addresses(address: str, revision: str | None) -> None:
    assert parse_model_id(address) == ModelId(NAME, revision, "huggingface.co")


@pytest.mark.parametrize(
    ("address", "host"),
    [
        (f"hf.co/{NAME}", "hf.co"),
        (f"http://hf-mirror.com/{NAME}", "hf-mirror.com"),
        (f"hf-mirror.com/{NAME}/blob/main/config.json", "hf-mirror.com"),
        (f"localhost:8080/{NAME}", "localhost:8080"),
        (f"https://github.com/{NAME}", "github.com"),
    ],
)
def test_an_address_says_its_host(address: str, host: str) -> None:
    found = parse_model_id(address)
    assert (found.name, found.host) == (NAME, host)


@pytest.mark.parametrize(
    "text",
    ["", "a/b/c", "a b/c", "owner/", "/", "owner/-name", "owner/na--me", "owner/..", "../name", "owner/name.", "ø/name",
     "https://huggingface.co", "https://huggingface.co/mispeech", "https://huggingface.co/datasets/mispeech/clips",
     "owner/" + 97 * "x", "owner/name@main", "hf.co/mispeech", 300 * "x", "../a/b"],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match="cannot pull"):
        parse_model_id(text)


def test_a_path_is_told_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "model.d" / "a" / "b").mkdir(parents=True)
    for text in ("./x", "/models/x", "~/x", "..\\x", "checkpoint", "model.d/a/b"):
        with pytest.raises(CheckpointNotFoundError, match="it is a path of this machine, which export takes as it is"):
            parse_model_id(text)


def test_a_name_without_its_owner_brings_the_whole_name() -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"expected OWNER/NAME or .*did you mean mispeech/dasheng-base"):
        parse_model_id("dasheng-base")
