"""Adapters: what is merged where, and refusals of what does not fit the checkpoint.

That the merge equals peft's is in test_adapter_properties.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dasheng_edge.export.adapter.adapter import adds_nothing, check_finite, open_adapter
from dasheng_edge.export.adapter.merge import measured_merge_error, open_adapters
from dasheng_edge.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from dasheng_edge.export.reference.golden import write_golden
from dasheng_edge.runtime.bundle.bundle import sha256_of
from dasheng_edge.runtime.errors import AdapterError, CheckpointFileError, ExportError
from tests.fixtures.adapter_files import Tensors, change_config, change_tensors, write_free_head
from tests.fixtures.tiny_checkpoint import write_tiny_adapter, write_tiny_checkpoint

LORA_A = "base_model.model.audio_projector.net.2.lora_A.weight"
NORM_A = "base_model.model.decoder.model.norm.lora_A.weight"


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint)


@pytest.fixture
def adapter(tiny_adapter: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_adapter, tmp_path / "birds"))


def test_all_three_parts_are_changed(checkpoint: Checkpoint, tiny_adapter: Path) -> None:
    merged, plain = open_adapters([tiny_adapter], checkpoint), open_adapters([], checkpoint)
    changed = {name for name in checkpoint.sources if not torch.equal(merged.tensor(name), plain.tensor(name))}

    assert {name.split(".")[0] for name in changed} == {"audio_encoder", "audio_projector", "decoder"}
    assert len(changed) == 2 * 2 + 2 + 2 * 3  # qkv and proj; net.0 and net.2; gate, up and down
    assert measured_merge_error(plain) == 0


def test_rows_are_those_of_the_merged_tensor(checkpoint: Checkpoint, tiny_adapter: Path) -> None:
    merged = open_adapters([tiny_adapter], checkpoint)
    name = "audio_encoder.blocks.1.attn.qkv.weight"

    assert torch.allclose(merged.rows(name, 60, 70), merged.tensor(name)[60:70], atol=1e-6)


def test_adapters_are_merged_in_order(checkpoint: Checkpoint, tmp_path: Path) -> None:
    lora = write_tiny_adapter(tmp_path / "lora", target_modules=["lm_head"])
    whole = write_tiny_adapter(tmp_path / "whole", target_modules=["o_proj"], modules_to_save=["lm_head"])
    name = "decoder.lm_head.weight"
    replaced = load_file(whole / "adapter_model.safetensors")[f"base_model.model.{name}"]

    assert torch.equal(open_adapters([lora, whole], checkpoint).tensor(name), replaced)
    assert not torch.equal(open_adapters([whole, lora], checkpoint).tensor(name), replaced)


def test_an_adapter_says_what_it_is(checkpoint: Checkpoint, tiny_adapter: Path) -> None:
    (opened,) = open_adapters([tiny_adapter], checkpoint).adapters

    assert opened.name == "tiny"
    assert opened.sha256 == sha256_of(tiny_adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_weights_that_are_not_finite_are_refused(
    checkpoint: Checkpoint, adapter: Path, factor: str, value: float
) -> None:
    name = LORA_A.replace("lora_A", factor)
    change_tensors(adapter, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    (opened,) = open_adapters([adapter], checkpoint).adapters

    with pytest.raises(AdapterError, match=rf"adapter birds holds NaN or infinity in .*net\.2\.weight \({factor}\)"):
        check_finite(opened)


def test_replaced_modules_that_are_not_finite_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = write_tiny_adapter(tmp_path / "whole", target_modules=["o_proj"], modules_to_save=["lm_head"])
    change_tensors(folder, lambda t: t["base_model.model.decoder.lm_head.weight"][9].fill_(float("nan")))
    (opened,) = open_adapters([folder], checkpoint).adapters

    with pytest.raises(AdapterError, match=r"adapter whole holds NaN or infinity in decoder\.lm_head\.weight"):
        check_finite(opened)


def test_no_error_is_measured_of_nan(checkpoint: Checkpoint, adapter: Path) -> None:
    change_tensors(adapter, lambda tensors: tensors[LORA_A].fill_(float("nan")))
    with pytest.raises(CheckpointFileError, match=rf"holds NaN or infinity in {LORA_A}, first at \[0, 0\]"):
        measured_merge_error(open_adapters([adapter], checkpoint))


def test_each_matrix_advances_the_progress(checkpoint: Checkpoint, adapter: Path) -> None:
    merged, amounts = open_adapters([adapter], checkpoint), list[int]()
    measured_merge_error(merged, amounts.append)

    assert sum(amounts) == len(merged.adapted()) == 12


def other_layer(tensors: Tensors) -> None:
    for name in (LORA_A, LORA_A.replace("lora_A", "lora_B")):
        tensors[name.replace("net.2", "net.9")] = tensors.pop(name)


def excluded(tensors: Tensors) -> None:
    prefix = "base_model.model.decoder.model.layers.0.self_attn.q_proj"
    tensors |= {f"{prefix}.lora_A.weight": torch.zeros(4, 256), f"{prefix}.lora_B.weight": torch.zeros(256, 4)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.clear(), "holds no tensor"),
        (lambda tensors: tensors.pop(LORA_A), r"audio_projector\.net\.2 has lora_B, expected lora_A, lora_B"),
        (other_layer, r"does not fit .*: it changes audio_projector\.net\.9"),
        (
            lambda tensors: tensors.update({LORA_A: torch.zeros(4, 300)}),
            r"audio_projector\.net\.2 has lora_A \(4, 300\), expected \(4, 256\) for rank 4 .* weight of \(256, 256\)",
        ),
        (lambda tensors: tensors.update({LORA_A: torch.zeros(8, 256)}), r"lora_A \(8, 256\), .* for rank 4"),
        (
            lambda tensors: tensors.update({LORA_A.replace("lora_A", "lora_B"): torch.zeros(256, 5)}),
            r"does not fit .*net\.2 has lora_B \(256, 5\)",
        ),
        (excluded, r"holds lora_A of decoder\.model\.layers\.0\.self_attn\.q_proj, but its configuration .* ignore it"),
        (lambda tensors: tensors.update({LORA_A: torch.zeros(4, 256).to(torch.int8)}), "holds I8 values"),
        (lambda tensors: tensors.update({"model.x.lora_A.weight": torch.zeros(1)}), "does not begin with base_model"),
        (
            lambda tensors: tensors.update({LORA_A.replace("lora_A.weight", "lora_magnitude_vector"): torch.zeros(1)}),
            "has lora_A, lora_B, lora_magnitude_vector, expected lora_A, lora_B .use_dora False",
        ),
        (
            lambda tensors: tensors.update({LORA_A.replace("lora_A.weight", "bias"): torch.zeros(256)}),
            r"net\.2\.bias is neither of LoRA nor of a module in modules_to_save",
        ),
        (
            lambda tensors: tensors.update({"base_model.model.decoder.other.lm_head.weight": torch.zeros(1)}),
            "does not fit .*: it replaces",
        ),
        (
            lambda tensors: tensors.update({"base_model.model.decoder.lm_head.weight": torch.zeros(500, 256)}),
            r"decoder\.lm_head\.weight has shape \(500, 256\), expected \(448, 256\)",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    checkpoint: Checkpoint, adapter: Path, change: Callable[[Tensors], object], message: str
) -> None:
    change_tensors(adapter, change)
    with pytest.raises(AdapterError, match=message):
        open_adapters([adapter], checkpoint)


def test_a_saved_module_must_be_there(checkpoint: Checkpoint, adapter: Path) -> None:
    change_config(adapter, modules_to_save=["q_proj"])
    with pytest.raises(AdapterError, match=r"has no decoder\.model\.layers\.0\.self_attn\.q_proj\.\w+, although"):
        open_adapters([adapter], checkpoint)


def test_lora_needs_a_matrix(checkpoint: Checkpoint, adapter: Path) -> None:
    change_config(adapter, target_modules=["norm"])
    change_tensors(adapter, lambda tensors: tensors.clear())
    change_tensors(adapter, lambda tensors: tensors.update({NORM_A: torch.zeros(4)}))
    with pytest.raises(AdapterError, match=r"changes decoder\.model\.norm, which is no matrix"):
        open_adapters([adapter], checkpoint)


@pytest.mark.parametrize("variant", ["midashenglm-tokenizer", "dasheng"])
def test_stored_names_of_other_members_of_the_family(tmp_path: Path, variant: str) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path / "checkpoint", variant=variant))
    stored = [source.name for name, source in checkpoint.sources.items() if name.endswith(".qkv.weight")]
    folder = write_tiny_adapter(tmp_path / "adapter", variant=variant, target_modules=["qkv"])
    merged = open_adapters([folder], checkpoint)

    assert all(name not in checkpoint.sources for name in stored)
    assert merged.adapted() == [f"audio_encoder.blocks.{i}.attn.qkv.weight" for i in range(2)]
    assert merged.tied is (variant == "midashenglm-tokenizer")
    assert merged.names("decoder.") == [name for name in checkpoint.sources if name.startswith("decoder.")]


TWO_BRANCHES = "midashenglm-tokenizer"
CANONICAL, STORED = "base_model.model.audio_encoder.blocks.0", "base_model.model.audio_encoder.model.blocks.0"


@pytest.mark.parametrize("keeps", [False, True])
def test_an_adapters_names_are_the_stored_ones(tmp_path: Path, *, keeps: bool) -> None:
    """Under canonical names peft would ignore it; beside the stored ones, one of the two would be lost."""
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path / "checkpoint", variant=TWO_BRANCHES))
    folder = write_tiny_adapter(tmp_path / "adapter", variant=TWO_BRANCHES, target_modules=["qkv"])

    def rename(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith(STORED)]:
            tensors[name.replace(STORED, CANONICAL)] = 2 * (tensors[name] if keeps else tensors.pop(name))

    change_tensors(folder, rename)
    message = r"does not fit \w+: it changes audio_encoder\.blocks\.0\.attn\.qkv, which is no matrix"
    with pytest.raises(AdapterError, match=message):
        open_adapters([folder], checkpoint)


def test_a_saved_module_is_the_one_that_is_stored_under_its_name(tmp_path: Path) -> None:
    """That is "audio_encoder.norm": the acoustic branch's as stored, the other one's by its canonical name."""
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path / "checkpoint", variant=TWO_BRANCHES))
    folder = write_tiny_adapter(tmp_path / "adapter", variant=TWO_BRANCHES, target_modules=["qkv"])
    saved = {f"base_model.model.audio_encoder.norm.{leaf}": torch.full((64,), 3.0) for leaf in ("weight", "bias")}
    change_tensors(folder, lambda tensors: tensors.update(saved))
    change_config(folder, modules_to_save=["audio_encoder.norm"])
    merged = open_adapters([folder], checkpoint)

    assert torch.equal(merged.tensor("audio_encoder.acoustic.norm.weight"), torch.full((64,), 3.0))
    assert not torch.equal(merged.tensor("audio_encoder.norm.weight"), torch.full((64,), 3.0))


def test_a_tied_head_has_the_name_that_it_is_stored_under(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "checkpoint", variant=TWO_BRANCHES)
    tensors: Tensors = load_file(folder / "model.safetensors")
    embedding = next(tensors[name] for name in tensors if name.endswith("embed_tokens.weight"))
    save_file(tensors | {"text.lm_head.weight": embedding.clone()}, folder / "model.safetensors")
    adapter = write_tiny_adapter(tmp_path / "adapter", variant=TWO_BRANCHES, target_modules=["qkv"])
    change_config(adapter, target_modules=["qkv", "lm_head"])
    factors = {"lora_A.weight": torch.ones(4, 256), "lora_B.weight": torch.ones(448, 4)}
    change_tensors(adapter, lambda t: t.update({f"base_model.model.text.lm_head.{n}": v for n, v in factors.items()}))
    merged = open_adapters([adapter], open_checkpoint(folder))

    assert merged.tied
    assert torch.allclose(merged.tensor("decoder.model.embed_tokens.weight"), embedding + 2 * 4, atol=1e-5)


def test_one_tensor_under_two_names_is_refused(checkpoint: Checkpoint, adapter: Path) -> None:
    head, values = "base_model.model.decoder.lm_head", torch.zeros(448, 256)
    change_config(adapter, modules_to_save=["lm_head"])
    twice = {f"{head}.original_module.weight": values, f"{head}.original_module.base_layer.weight": values + 1}
    change_tensors(adapter, lambda tensors: tensors.update(twice))
    with pytest.raises(
        AdapterError, match=r"lm_head\.original\w+\.\S+ and \S*lm_head\S+ are one tensor under two names"
    ):
        open_adapters([adapter], checkpoint)


@pytest.mark.parametrize("same", [True, False])
def test_a_magnitude_under_two_names_is_one_only_if_equal(checkpoint: Checkpoint, adapter: Path, *, same: bool) -> None:
    """As peft stores that of a head: "lora_magnitude_vector", and the same with ".weight"."""
    change_config(adapter, use_dora=True)

    def add(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith(".lora_B.weight")]:
            magnitude = name.replace("lora_B.weight", "lora_magnitude_vector")
            tensors |= {
                magnitude: torch.ones(len(tensors[name])),
                f"{magnitude}.weight": torch.ones(len(tensors[name])),
            }
            tensors[magnitude] *= 1 if same else 2

    change_tensors(adapter, add)
    if same:
        assert open_adapters([adapter], checkpoint).adapters[0].low_rank
    else:
        with pytest.raises(
            AdapterError, match=r"magnitude_vector and \S+magnitude_vector\.weight are one tensor under"
        ):
            open_adapters([adapter], checkpoint)


def test_a_head_that_is_set_free_counts(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path / "checkpoint", variant=TWO_BRANCHES))
    merged = open_adapters([write_free_head(tmp_path / "head", TWO_BRANCHES)], checkpoint)

    assert merged.parameters("audio_") == checkpoint.parameters("audio_")
    assert merged.parameters("decoder.") == checkpoint.parameters("decoder.") + 448 * 256


def test_an_adapter_that_overflows_is_named(checkpoint: Checkpoint, adapter: Path, tmp_path: Path) -> None:
    change_config(adapter, lora_alpha=3e38)
    merged = open_adapters([adapter], checkpoint)
    wanted = (
        r"NaN or infinity in patches_0, so a weight of .* or not any more with birds merged in .*; export without it"
    )
    with pytest.raises(ExportError, match=wanted):
        write_golden(tmp_path / "golden.npz", merged, None)


def test_an_adapter_with_more_tokens_is_told_from_one_of_another_model(checkpoint: Checkpoint, adapter: Path) -> None:
    more = {
        f"base_model.model.decoder.{name}.weight": torch.zeros(450, 256) for name in ("lm_head", "model.embed_tokens")
    }
    message = r"has shape \(450, 256\), expected \(448, 256\): tokens were added to the vocabulary of 448 before"
    whole = load_file(adapter / "adapter_model.safetensors")
    for name, tensor in more.items():
        save_file({**whole, name: tensor}, adapter / "adapter_model.safetensors")
        with pytest.raises(AdapterError, match=message):
            open_adapters([adapter], checkpoint)


def test_a_low_rank_head_with_more_tokens_is_told_too(checkpoint: Checkpoint, tmp_path: Path) -> None:
    adapter = write_tiny_adapter(tmp_path / "head", target_modules=["lm_head"])
    name = "base_model.model.decoder.lm_head.lora_B.weight"
    change_tensors(adapter, lambda tensors: tensors.update({name: torch.zeros(450, 4)}))
    with pytest.raises(AdapterError, match="tokens were added to the vocabulary of 448"):
        open_adapters([adapter], checkpoint)


def test_an_adapter_that_was_not_gathered_is_told(checkpoint: Checkpoint, adapter: Path) -> None:
    change_tensors(adapter, lambda tensors: tensors.update({name: torch.zeros(0) for name in tensors}))
    with pytest.raises(AdapterError, match=r"24 of 24 tensors are empty .*DeepSpeed ZeRO-3"):
        open_adapters([adapter], checkpoint)


@pytest.mark.parametrize("zeroed", [["lora_B"], ["lora_A"], ["lora_A", "lora_B"]])
def test_an_adapter_that_adds_nothing_is_known(checkpoint: Checkpoint, adapter: Path, zeroed: list[str]) -> None:
    assert not adds_nothing(open_adapter(adapter, checkpoint))

    def zero(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if any(part in name for part in zeroed):
                tensor.zero_()

    change_tensors(adapter, zero)
    assert adds_nothing(open_adapter(adapter, checkpoint))
    change_tensors(adapter, lambda tensors: [tensor.view(-1)[-1:].fill_(1) for tensor in tensors.values()])
    assert not adds_nothing(open_adapter(adapter, checkpoint))


def test_what_else_lies_beside_an_adapter_and_how_it_was_trained_is_told(checkpoint: Checkpoint, adapter: Path) -> None:
    (sentence,) = open_adapter(adapter, checkpoint).warnings
    assert "mdl-toolkit" in sentence
    assert "final/" in sentence
    change_config(adapter, target_modules=r".*\.(qkv|proj|net\.\d|gate_proj|up_proj|down_proj)|.*net\.\d")
    assert open_adapter(adapter, checkpoint).warnings == ()
    (adapter / "adapter_model.bin").write_bytes(b"x")
    (sentence,) = open_adapter(adapter, checkpoint).warnings
    assert "adapter_model.bin beside it was left aside" in sentence
