"""What is fetched of a repository, whatever else is in it, and what is refused before its weights are."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.export.files.names import CONFIG, SIDE_FILES
from dasheng_edge.export.hub.client import HubFile, Repository
from dasheng_edge.export.hub.files import PICKLES, is_adapter, needed_files
from dasheng_edge.runtime.errors import (
    AdapterError,
    CheckpointFileError,
    CheckpointNotFoundError,
    CheckpointVariantError,
)
from tests.fixtures.hub_server import ENCODER as TENSORS
from tests.fixtures.hub_server import safetensors

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def weights(*names: str) -> str:
    """A safetensors file with tensors of these names."""
    return safetensors(*names).decode("latin-1")


ENCODER = weights(*(f"encoder.{name}" for name in TENSORS))
PLAIN = {CONFIG: "{}", WEIGHTS: ENCODER}


def needed(files: dict[str, str], name: str = "owner/model") -> list[str]:
    """Names of the files that are needed; weights may not be read to find out."""

    def read(file: HubFile) -> bytes:
        assert file.name in {CONFIG, INDEX}
        return files[file.name].encode()

    def head(file: HubFile, size: int) -> bytes:
        assert file.name == WEIGHTS
        return files[file.name].encode("latin-1")[:size]

    listed = {file: HubFile(file, len(text), None, None) for file, text in files.items()}
    chosen = needed_files(Repository(name, 40 * "0", listed), read, head)
    assert is_adapter(chosen) == (ADAPTER_WEIGHTS in [file.name for file in chosen])
    return [file.name for file in chosen]


def index(*shards: object) -> str:
    names = [f"encoder.{name}" for name in TENSORS]
    return json.dumps({"weight_map": {name: shards[i % len(shards)] for i, name in enumerate(names) if shards}})


SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
WHOLE = {
    "one file": (PLAIN, {CONFIG, WEIGHTS}),
    "shards": ({CONFIG: "{}", INDEX: index(*SHARDS), **dict.fromkeys(SHARDS, "")}, {CONFIG, INDEX, *SHARDS}),
    "shards and one file": (
        PLAIN | {INDEX: index(*SHARDS), **dict.fromkeys(SHARDS, "")}, {CONFIG, WEIGHTS},  # as transformers loads it
    ),
    "adapter": ({ADAPTER_CONFIG: "{}", ADAPTER_WEIGHTS: ""}, {ADAPTER_CONFIG, ADAPTER_WEIGHTS}),
}  # fmt: skip
SIDE = [name for name in SIDE_FILES if name != CONFIG]
PAPERS = ["README.md", "LICENSE", "LICENSE.txt", "LICENCE.md", "NOTICE", "license.txt"]
UNWANTED = [
    "modeling_midashenglm.py", "setup.py", "pytorch_model.bin", "model.pt", "training_args.bin", "optimizer.pt",
    "model-Q4_K_M.gguf", "model.fp8.safetensors", "onnx/model.onnx", "fp8/model.safetensors", "fp8/config.json",
    "../config.json", ".gitattributes", "tf_model.h5", "runs/events.out", "README.py", "LICENSE.bin", "vocab.json.py",
    "model-00003-of-00002.safetensors", "consolidated.safetensors",
]  # fmt: skip


@given(
    kind=st.sampled_from(sorted(WHOLE)),
    side=st.sets(st.sampled_from(SIDE)),
    papers=st.sets(st.sampled_from(PAPERS)),
    extra=st.sets(st.sampled_from(UNWANTED) | st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)),
)
def test_all_that_is_needed_and_nothing_else(kind: str, side: set[str], papers: set[str], extra: set[str]) -> None:
    files, least = WHOLE[kind]
    extra -= {*least, *SIDE_FILES, *PAPERS, WEIGHTS, INDEX}
    fetched = needed({**files, **dict.fromkeys(side | papers | extra, "")})

    assert len(fetched) == len(set(fetched))
    assert set(fetched) == least | papers | (set() if kind == "adapter" else side)
    assert not any(name.endswith((*PICKLES, ".py")) or "/" in name for name in fetched)


def test_weights_come_last() -> None:
    fetched = needed({WEIGHTS: ENCODER, "README.md": "", CONFIG: "{}", "tokenizer.json": ""})
    assert fetched[-1] == WEIGHTS


@pytest.mark.parametrize(
    ("name", "quantization", "instead"),
    [
        ("mispeech/midashenglm-7b-fp8", {"quant_method": "fp8"}, "mispeech/midashenglm-7b-bf16"),
        ("mispeech/midashenglm-7b-1021-w4a16-gptq", {"quant_method": "gptq"}, "mispeech/midashenglm-7b-1021-bf16"),
        ("mispeech/midashenglm-7b-1021-fp8", None, "mispeech/midashenglm-7b-1021-bf16"),
        ("somebody/my-model", {"quant_method": "awq"}, "one of mispeech/midashenglm-7b-1021-bf16, "),
    ],
)
def test_quantized_repositories_are_refused(name: str, quantization: dict[str, str] | None, instead: str) -> None:
    config = {"quantization_config": quantization} if quantization else {}
    with pytest.raises(CheckpointVariantError, match=f"{name} is a quantized checkpoint .*; pull {instead}") as caught:
        needed({CONFIG: json.dumps(config), WEIGHTS: ""}, name)
    assert "--encoder" not in str(caught.value)


def test_quantized_weights_under_another_name_are_still_refused_as_quantized() -> None:
    config = json.dumps({"quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(CheckpointVariantError, match="quant_method 'gptq'"):
        needed({CONFIG: config, "gptq_model-4bit-128g.safetensors": ""})


def test_a_model_that_generates_audio_is_refused() -> None:
    with pytest.raises(CheckpointVariantError, match="MiDashengLM-Gen"):
        needed({CONFIG: json.dumps({"model_type": "midashenglm_gen"}), WEIGHTS: ""})


@pytest.mark.parametrize(
    ("names", "lacks"),
    [
        (["embeddings.word_embeddings.weight"], TENSORS[0]),
        (["thinker.visual.patch_embed.proj.weight", "thinker.model.embed_tokens.weight"], TENSORS[1]),
        ([f"x{name}" for name in TENSORS], TENSORS[0]),
        ([], TENSORS[0]),
    ],
)
@pytest.mark.parametrize("shards", [False, True])
def test_another_model_is_refused_before_its_weights_come(names: list[str], lacks: str, shards: bool) -> None:
    config = json.dumps({"model_type": "bert", "architectures": ["BertModel"]})
    stored = {WEIGHTS: weights(*names)}
    if shards:
        weight_map = dict.fromkeys(names or ["bias"], SHARDS[0])
        stored = {INDEX: json.dumps({"weight_map": weight_map}), SHARDS[0]: ""}
    expected = rf"no model of the Dasheng family: it has no tensor {lacks},.*'bert', .*'BertModel'.*; pull one of mi"
    with pytest.raises(CheckpointVariantError, match=expected):
        needed({CONFIG: config, **stored})


def test_a_tokenizer_without_a_language_model_is_refused() -> None:
    names = [*TENSORS, "acoustic.patch_embed.weight"]
    with pytest.raises(CheckpointVariantError, match="DashengTokenizer without a language model"):
        needed({CONFIG: "{}", WEIGHTS: weights(*names)})
    assert needed({CONFIG: "{}", WEIGHTS: weights(*names, "model.embed_tokens.weight")}) == [CONFIG, WEIGHTS]


@pytest.mark.parametrize("content", ["", "1234567", 8 * "\0" + "{}", "\x03" + 7 * "\0" + "{}", "<html>" + 99 * " "])
def test_weights_that_are_not_safetensors(content: str) -> None:
    with pytest.raises(CheckpointFileError, match=r"model\.safetensors of owner/model is not safetensors: it begins"):
        needed({CONFIG: "{}", WEIGHTS: content})


@pytest.mark.parametrize(("header", "message"), [("{,", ": Expecting"), ("[]", " holds a list")])
def test_weights_with_a_broken_header(header: str, message: str) -> None:
    content = "\x02" + 7 * "\0" + header
    with pytest.raises(CheckpointFileError, match=rf"the header of model\.safetensors of owner/model{message}"):
        needed({CONFIG: "{}", WEIGHTS: content})


def test_ggufs_are_refused_with_what_they_were_made_from() -> None:
    with pytest.raises(CheckpointVariantError, match=r"holds a\.gguf, .* pull mispeech/midashenglm-0\.6b-fp32"):
        needed({"a.gguf": "", "README.md": ""}, "mispeech/midashenglm-0.6b-gguf")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({CONFIG: "{}", "pytorch_model.bin": ""}, r"pytorch_model\.bin, a pickle, which is not opened"),
        ({ADAPTER_CONFIG: "{}", "adapter_model.bin": ""}, r"adapter_model\.bin, a pickle"),
        ({CONFIG: "{}", "encoder.safetensors": ""}, r"but encoder\.safetensors"),
        ({ADAPTER_WEIGHTS: ""}, rf"but {ADAPTER_WEIGHTS}"),
        ({"README.md": ""}, r"adapter_config\.json;"),
        ({}, r"adapter_config\.json;"),
    ],
)
def test_a_repository_without_safetensors_says_so(files: dict[str, str], found: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match=rf"owner/model has no model\.safetensors.*{found}.*ask its"):
        needed(files)


def test_an_adapter_with_an_encoder_beside_it_is_not_taken_for_all() -> None:
    with pytest.raises(AdapterError, match=r"owner/model holds vit\.safetensors, an encoder that ms-swift trained"):
        needed({ADAPTER_CONFIG: "{}", ADAPTER_WEIGHTS: "", "vit.safetensors": ""})


def test_weights_without_a_configuration_are_no_checkpoint() -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"it holds weights and no config\.json"):
        needed({WEIGHTS: ""})


@pytest.mark.parametrize("text", ["", "{", "<html>"])
def test_a_configuration_that_is_not_json(text: str) -> None:
    with pytest.raises(CheckpointFileError, match=r"cannot read config\.json of owner/model"):
        needed({CONFIG: text, WEIGHTS: ""})


def test_a_configuration_that_is_no_object() -> None:
    with pytest.raises(CheckpointFileError, match=r"config\.json of owner/model holds a list, expected a JSON object"):
        needed({CONFIG: "[]", WEIGHTS: ""})


@pytest.mark.parametrize(
    "text",
    ["{}", '{"weight_map": []}', index(), index(7), index(["a"]), index("../model.safetensors"),
     index("a/b.safetensors"), index("model.bin"), index("C:x.safetensors"), index(".safetensors"), index("x.py")],
)  # fmt: skip
def test_an_index_names_safetensors_files_beside_it(text: str) -> None:
    with pytest.raises(CheckpointFileError, match=rf"{INDEX} of owner/model names \[.*expected safetensors files"):
        needed({CONFIG: "{}", INDEX: text, "model.bin": ""})


def test_a_shard_that_was_not_uploaded() -> None:
    with pytest.raises(CheckpointFileError, match=f"owner/model lacks {SHARDS[1]}, which its {INDEX} lists"):
        needed({CONFIG: "{}", INDEX: index(*SHARDS), SHARDS[0]: ""})
