"""What a GGUF states beside its tensors: where the model comes from, its sizes, its tokenizer and its defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from dasheng_edge.export.adapter.merge import MergedTensors, open_adapters
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.files.pull_record import PULL_RECORD
from dasheng_edge.export.gguf.decoder import write_gguf
from dasheng_edge.export.gguf.metadata import model_card, other_bases
from dasheng_edge.export.gguf.tokenizer import read_vocabulary
from dasheng_edge.quant.decoder.llama_quantize import FILE_TYPES, quantize
from dasheng_edge.quant.decoder.types import DecoderOptions
from dasheng_edge.runtime.bundle.manifest import Sampling
from tests.fixtures.adapter_files import change_config, state, write_free_head
from tests.fixtures.tiny_checkpoint import CHAT_TEMPLATE, ROWS, write_tiny_adapter, write_tiny_checkpoint

CARD = """---
license: other
license_name: tongyi-qianwen
license_link: https://example.org/LICENSE
language:
- en
- no
tags: [audio, captioning]
pipeline_tag: audio-text-to-text
---
# A model
"""
Edit = Callable[[Path], object]


def written(path: Path, merged: MergedTensors, sampling: Sampling | None = None) -> dict[str, Any]:
    """All fields of the decoder's GGUF, F16."""
    write_gguf(path, merged, read_vocabulary(merged.checkpoint.folder, ROWS), "F16", sampling=sampling)
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


SIZES: dict[str, dict[str, object]] = {
    "midashenglm": {"attention.head_count": 4, "attention.head_count_kv": 2},
    "midashenglm-tokenizer": {
        "attention.head_count": 8, "attention.head_count_kv": 2,
        "attention.key_length": 64, "attention.value_length": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize(("variant", "arch"), [("midashenglm", "qwen2"), ("midashenglm-tokenizer", "qwen3")])
def test_the_architecture_and_its_sizes(variant: str, arch: str, tmp_path: Path) -> None:
    merged = MergedTensors(open_checkpoint(write_tiny_checkpoint(tmp_path / "tiny", variant=variant)))
    fields = written(tmp_path / "x.gguf", merged)
    spec = merged.checkpoint.decoder
    assert spec is not None
    wanted = {
        "context_length": spec.context_length, "embedding_length": 256, "block_count": 2, "feed_forward_length": 512,
        "rope.freq_base": 1e6, "vocab_size": ROWS, **SIZES[variant],
    }  # fmt: skip

    assert fields["general.architecture"] == arch
    assert {name: fields[f"{arch}.{name}"] for name in wanted} == wanted
    assert fields[f"{arch}.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert (f"{arch}.attention.key_length" in fields) == (arch == "qwen3")


def test_the_tokenizer(tiny_checkpoint: Path, tmp_path: Path) -> None:
    fields = written(tmp_path / "x.gguf", MergedTensors(open_checkpoint(tiny_checkpoint)))
    ids = {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"])}
    wanted = {
        "model": "gpt2", "pre": "qwen2", "add_bos_token": False, "eos_token_id": ids["<|im_end|>"],
        "eot_token_id": ids["<|im_end|>"], "padding_token_id": ids["<|endoftext|>"],
    }  # fmt: skip

    assert {name: fields[f"tokenizer.ggml.{name}"] for name in wanted} == wanted
    assert fields["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert len(fields["tokenizer.ggml.token_type"]) == ROWS
    assert not {"tokenizer.ggml.eom_token_id", "tokenizer.ggml.bos_token_id"} & fields.keys()


def test_an_end_that_llama_cpp_does_not_know_is_named(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    state(folder, "generation_config.json", eos_token_id=[300, 301])
    state(folder, "tokenizer_config.json", bos_token="<|endoftext|>")
    fields = written(tmp_path / "x.gguf", MergedTensors(open_checkpoint(folder)))

    assert [fields[f"tokenizer.ggml.{name}_token_id"] for name in ("eot", "eom")] == [300, 301]
    assert fields["tokenizer.ggml.bos_token_id"] == fields["tokenizer.ggml.padding_token_id"]


def test_a_name_on_the_hub_is_taken_apart_as_llama_cpps_converter_does(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "MiDashengLM-1M-Instruct-v2")
    state(folder, "config.json", _name_or_path="mispeech/midashenglm-tiny")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    fields = written(tmp_path / "x.gguf", MergedTensors(open_checkpoint(folder)))
    wanted = {
        "type": "model", "name": "MiDashengLM-1M-Instruct-v2", "basename": "MiDashengLM", "finetune": "Instruct",
        "version": "v2", "size_label": "1.4M", "license": "other", "license.name": "tongyi-qianwen",
        "license.link": "https://example.org/LICENSE", "languages": ["en", "no"],
        "tags": ["audio", "captioning", "audio-text-to-text"], "base_model.count": 1,
        "base_model.0.name": "midashenglm-tiny", "base_model.0.organization": "mispeech",
        "base_model.0.repo_url": "https://huggingface.co/mispeech/midashenglm-tiny",
    }  # fmt: skip

    assert {name: fields.get(f"general.{name}") for name in wanted} == wanted


def test_the_pulled_revision_is_kept(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    state(folder, PULL_RECORD, repo="owner/the-model", revision="0" * 40)
    fields = written(tmp_path / "x.gguf", MergedTensors(open_checkpoint(folder)))

    assert fields["general.base_model.0.repo_url"] == "https://huggingface.co/owner/the-model"
    assert fields["general.base_model.0.version"] == "0" * 40


@pytest.mark.parametrize("stated", ["../out/model", "/home/me/model", "out/model", "output/final", "model", 3, None])
def test_nothing_is_made_up(stated: object, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "mine")
    state(folder, "config.json", _name_or_path=stated)
    fields = written(tmp_path / "x.gguf", MergedTensors(open_checkpoint(folder)))
    general = {name.removeprefix("general.") for name in fields if name.startswith("general.")}

    assert general == {"architecture", "type", "name", "size_label", "file_type", "quantization_version"}
    assert fields["general.name"] == "mine"


def test_adapters_are_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path / "mine"))
    merged = open_adapters([write_tiny_adapter(tmp_path / "birds")], checkpoint)
    fields = written(tmp_path / "x.gguf", merged)

    assert (fields["general.name"], fields["general.finetune"]) == ("mine + birds", "birds")


OTHER = "although it says that it was trained on {} (decides"
HUB_ID = "mispeech/midashenglm-7b-1021-bf16"


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("mispeech/midashenglm-7b", "mispeech/midashenglm-7b"),
        ("mispeech/another-model", "mispeech/another-model"),
        ("output/final", "another model"),  # which may be a folder
        (HUB_ID, None),
        ("Mispeech/MiDashengLM-7B-1021-bf16", None),  # the hub does not mind
        ("/home/me/another-model", None),
        (3, None),
        (None, None),
    ],
)
def test_an_adapter_of_another_model_is_told(base: object, said: str | None, tmp_path: Path) -> None:
    folder, adapter = write_tiny_checkpoint(tmp_path / "mine"), write_tiny_adapter(tmp_path / "birds")
    change_config(adapter, base_model_name_or_path=base)

    assert other_bases(open_adapters([adapter], open_checkpoint(folder))) == ()  # of what nobody knows the name
    state(folder, "config.json", _name_or_path=HUB_ID)
    told = other_bases(open_adapters([adapter], open_checkpoint(folder)))
    assert len(told) == (said is not None)
    assert all(line.startswith(f"adapter birds is one for {HUB_ID}, {OTHER.format(said)}") for line in told)


def test_the_owner_of_a_pulled_checkpoint_is_known(tmp_path: Path) -> None:
    folder, adapter = write_tiny_checkpoint(tmp_path / "mine"), write_tiny_adapter(tmp_path / "birds")
    state(folder, PULL_RECORD, repo="someone/model", revision="0" * 40)
    change_config(adapter, base_model_name_or_path="someone/older-model")
    (told,) = other_bases(open_adapters([adapter], open_checkpoint(folder)))

    assert OTHER.format("someone/older-model") in told


def test_the_size_is_that_of_what_is_written(tmp_path: Path) -> None:
    variant: str = "midashenglm-tokenizer"
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path / "mine", variant=variant))
    free = open_adapters([write_free_head(tmp_path / "head", variant)], checkpoint)

    for merged, label in ((MergedTensors(checkpoint), "1.6M"), (free, "1.7M")):
        assert written(tmp_path / "x.gguf", merged)["general.size_label"] == label


@pytest.mark.parametrize(
    "card",
    ["no header", "---\nlicense: [unclosed\n---\n", "---\n- a list\n---\n", "---\nlicense: 3\ntags: {a: b}\n---\n", ""],
)
def test_a_strange_card_is_no_reason_to_refuse(card: str, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "mine")
    (folder / "README.md").write_text(card, encoding="utf-8")
    fields = written(tmp_path / "x.gguf", MergedTensors(open_checkpoint(folder)))

    assert not {"general.license", "general.tags", "general.languages"} & fields.keys()


def test_a_card_that_is_not_text_is_none(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert model_card(tmp_path) == {}
    (tmp_path / "README.md").write_text("---\nlicense: " + "[" * 3000 + "\n---\n")
    assert model_card(tmp_path) == {}


def test_sampling_is_that_of_the_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    merged = MergedTensors(open_checkpoint(tiny_checkpoint))
    greedy = written(tmp_path / "greedy.gguf", merged, Sampling(repetition_penalty=1.5))
    warm = written(tmp_path / "warm.gguf", merged, Sampling(temperature=0.5, top_k=20, top_p=0.75, min_p=0.25))

    def sampling(fields: dict[str, Any]) -> dict[str, Any]:
        start = "general.sampling."
        return {name.removeprefix(start): value for name, value in fields.items() if name.startswith(start)}

    assert sampling(greedy) == {"temp": 0, "penalty_repeat": 1.5}
    assert sampling(warm) == {"temp": 0.5, "top_k": 20, "top_p": 0.75, "min_p": 0.25, "penalty_repeat": 1}


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_0", "IQ4_NL"])
def test_the_quantizer_states_its_type_and_keeps_the_rest(kind: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    before = written(tmp_path / "x.gguf", MergedTensors(open_checkpoint(tiny_checkpoint)), Sampling())
    quantize(tmp_path / "x.gguf", tmp_path / "y.gguf", DecoderOptions(kind), threads=1)
    after = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "y.gguf").fields.items()}

    assert after["general.file_type"] == FILE_TYPES[kind]
    assert after["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    assert {name for name in before if before[name] != after[name]} == {"general.file_type"}
    assert after.keys() == before.keys()
