"""Names of models as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dasheng_edge.export.model_id import ModelId, parse_model_id
from dasheng_edge.export.unsupported import EXPORTABLE
from dasheng_edge.runtime.errors import CheckpointNotFoundError

pytestmark = pytest.mark.torch

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
        (f"http://hf-mirror.com/{NAME}?library=transformers#usage", None),
        (f"https://huggingface.co/{NAME}/tree/main", "main"),
        (f"https://huggingface.co/{NAME}/tree/refs%2Fpr%2F3", "refs/pr/3"),
        (f"https://huggingface.co/{NAME}/blob/v1/config.json", "v1"),
        (f"https://huggingface.co/{NAME}/resolve/v1/config.json?download=true", "v1"),
        (f"https://huggingface.co/{NAME}/discussions/3", None),
    ],
)
def test_addresses(address: str, revision: str | None) -> None:
    assert parse_model_id(address) == ModelId(NAME, revision)


@pytest.mark.parametrize(
    "text",
    ["", "a/b/c", "a b/c", "owner/", "/", "owner/-name", "owner/na--me", "owner/..", "../name", "owner/name.", "ø/name",
     "https://huggingface.co", "https://huggingface.co/mispeech", "https://huggingface.co/datasets/mispeech/clips",
     "owner/" + 97 * "x", "owner/name@main"],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match="cannot pull"):
        parse_model_id(text)


def test_a_path_is_told_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    for text in ("./x", "/models/x", "~/x", "..\\x", "checkpoint"):
        with pytest.raises(CheckpointNotFoundError, match="it is a path of this machine, which export takes as it is"):
            parse_model_id(text)


def test_a_name_without_its_owner_brings_the_whole_name() -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"expected OWNER/NAME or .*did you mean mispeech/dasheng-base"):
        parse_model_id("dasheng-base")
