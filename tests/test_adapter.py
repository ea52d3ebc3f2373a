"""Merging LoRA adapters: equal to peft's own merge, and refusals by name of everything else."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dasheng_edge.export.adapter import adapted_matrices, check_finite, measured_merge_error, open_adapters
from dasheng_edge.export.checkpoint import Checkpoint, open_checkpoint
from dasheng_edge.runtime.bundle import sha256_of
from dasheng_edge.runtime.errors import AdapterError
from tests.tiny_checkpoint import Skeleton, tiny_shapes, write_tiny_adapter

pytestmark = pytest.mark.torch

Tensors = dict[str, Any]
LORA_A = "base_model.model.audio_projector.net.2.lora_A.weight"


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_adapter(tmp_path_factory.mktemp("adapter") / "tiny")


@pytest.fixture
def adapter(tiny_adapter: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_adapter, tmp_path / "adapter"))


def change_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def change_config(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def merged_by_peft(checkpoint: Checkpoint, folders: list[Path]) -> dict[str, Any]:
    from peft import PeftModel

    model: Any = Skeleton(tiny_shapes())
    stored = load_file(checkpoint.files[0])
    model.load_state_dict({name: stored[name] for name in model.state_dict()})
    for folder in folders:
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return dict(model.state_dict())


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `write_tiny_adapter`: the shapes that adapters of this model come in."""
    leaves = ["qkv", "attn.proj", "net.0", "net.2", "q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    targets = draw(st.lists(st.sampled_from(leaves), min_size=1, max_size=3, unique=True))
    # No two patterns for one module: peft sorts them when it saves, and takes the first that matches.
    patterns = [r"blocks\.0\..*qkv" if target == "qkv" else target for target in targets]
    return {
        "r": draw(st.integers(1, 6)),
        "lora_alpha": draw(st.integers(1, 20)),
        "use_rslora": draw(st.booleans()),
        "target_modules": targets,
        "modules_to_save": draw(st.sampled_from([None, ["lm_head"], ["lm_head", "embed_tokens"]])),
        "rank_pattern": draw(st.dictionaries(st.sampled_from(patterns), st.integers(1, 6))),
        "alpha_pattern": draw(st.dictionaries(st.sampled_from(patterns), st.integers(1, 9))),
        "seed": draw(st.integers(0, 99)),
    }


@given(st.lists(configurations(), min_size=1, max_size=2))
@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_merging_equals_pefts_merge_and_unload(
    checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory, many: list[dict[str, Any]]
) -> None:
    root = tmp_path_factory.mktemp("adapters")
    folders = [write_tiny_adapter(root / str(i), **arguments) for i, arguments in enumerate(many)]
    merged = open_adapters(folders, checkpoint)

    for name, want in merged_by_peft(checkpoint, folders).items():
        got = merged.tensor(name)
        assert (got - want).abs().max() <= 2e-6 * max(1, float(want.abs().max())), name
    assert measured_merge_error(merged) <= 1e-6


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


def test_settings_of_training_do_not_matter(checkpoint: Checkpoint, adapter: Path) -> None:
    change_config(
        adapter, lora_dropout=0.3, task_type="CAUSAL_LM", init_lora_weights="gaussian", layers_to_transform=[0],
        base_model_name_or_path="somewhere", a_newer_field_of_peft=None, qalora_group_size=16, arrow_config={},
    )  # fmt: skip
    assert open_adapters([adapter], checkpoint).adapters[0].low_rank


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "IA3", "peft_type is 'IA3', only 'LORA'"),
        ("use_dora", True, "use_dora = True is not supported"),
        ("lora_bias", True, "lora_bias = True is not supported"),
        ("target_parameters", ["x"], r"target_parameters = \['x'\] is not supported"),
        ("trainable_token_indices", [1], "trainable_token_indices"),
        ("layer_replication", [[0, 1]], "layer_replication"),
        ("a_newer_field_of_peft", 7, "a_newer_field_of_peft = 7 is not supported"),
        ("init_lora_weights", "pissa_niter_16", "'pissa_niter_16' changes the base weights"),
        ("init_lora_weights", "olora", "changes the base weights"),
        ("init_lora_weights", "loftq", "changes the base weights"),
        ("r", "abc", "adapter_config.json: r is 'abc', expected a valid integer; save the adapter again"),
        ("r", 0, "r is 0, expected greater than 0"),
        ("lora_alpha", None, "lora_alpha is None, expected a valid number"),
        ("rank_pattern", [1], "rank_pattern is .*expected a valid dictionary"),
        ("bias", "lora_only", r"bias = 'lora_only' \(trained biases\) is not supported"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(
    checkpoint: Checkpoint, adapter: Path, key: str, value: object, message: str
) -> None:
    change_config(adapter, **{key: value})
    with pytest.raises(AdapterError, match=message):
        open_adapters([adapter], checkpoint)


def test_what_is_no_adapter_is_refused(checkpoint: Checkpoint, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"is not an adapter: no adapter_config\.json"):
        open_adapters([tmp_path / "absent"], checkpoint)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"only adapter_model\.bin, a pickle"):
        open_adapters([adapter], checkpoint)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(AdapterError, match=r"no adapter_model\.safetensors \(found none\)"):
        open_adapters([adapter], checkpoint)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="cannot read"):
        open_adapters([adapter], checkpoint)
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(AdapterError, match="peft_type is None"):
        open_adapters([adapter], checkpoint)


def test_a_truncated_adapter_is_refused(checkpoint: Checkpoint, adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(AdapterError, match="is truncated or not safetensors"):
        open_adapters([adapter], checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_weights_that_are_not_finite_are_refused(
    checkpoint: Checkpoint, adapter: Path, factor: str, value: float
) -> None:
    name = LORA_A.replace("lora_A", factor)
    change_tensors(adapter, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    (opened,) = open_adapters([adapter], checkpoint).adapters

    with pytest.raises(AdapterError, match=rf"adapter adapter holds NaN or infinity in .*net\.2\.weight \({factor}\)"):
        check_finite(opened)


def test_replaced_modules_that_are_not_finite_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = write_tiny_adapter(tmp_path / "whole", target_modules=["o_proj"], modules_to_save=["lm_head"])
    change_tensors(folder, lambda t: t["base_model.model.decoder.lm_head.weight"][9].fill_(float("nan")))
    (opened,) = open_adapters([folder], checkpoint).adapters

    with pytest.raises(AdapterError, match=r"adapter whole holds NaN or infinity in decoder\.lm_head\.weight"):
        check_finite(opened)


def test_nan_is_the_largest_error(checkpoint: Checkpoint, adapter: Path) -> None:
    change_tensors(adapter, lambda tensors: tensors[LORA_A].fill_(float("nan")))
    assert math.isnan(measured_merge_error(open_adapters([adapter], checkpoint)))


def test_each_matrix_advances_the_progress(checkpoint: Checkpoint, adapter: Path) -> None:
    merged, amounts = open_adapters([adapter], checkpoint), list[int]()
    measured_merge_error(merged, amounts.append)

    assert sum(amounts) == len(adapted_matrices(merged)) == 12


def other_layer(tensors: Tensors) -> None:
    for name in (LORA_A, LORA_A.replace("lora_A", "lora_B")):
        tensors[name.replace("net.2", "net.9")] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.clear(), "holds no tensor"),
        (lambda tensors: tensors.pop(LORA_A), r"audio_projector\.net\.2 has no lora_A\.weight"),
        (other_layer, r"made for another model: it changes audio_projector\.net\.9"),
        (
            lambda tensors: tensors.update({LORA_A: torch.zeros(4, 300)}),
            r"audio_projector\.net\.2 has lora_A \(4, 300\) .* expected \(4, 256\) and \(256, 4\) for rank 4",
        ),
        (lambda tensors: tensors.update({LORA_A: torch.zeros(8, 256)}), r"lora_A \(8, 256\) .* for rank 4"),
        (lambda tensors: tensors.update({"model.x.lora_A.weight": torch.zeros(1)}), "does not begin with base_model"),
        (
            lambda tensors: tensors.update({LORA_A.replace("lora_A.weight", "lora_magnitude_vector"): torch.zeros(1)}),
            "neither lora_A, lora_B nor of a module in modules_to_save",
        ),
        (
            lambda tensors: tensors.update({"base_model.model.decoder.other.lm_head.weight": torch.zeros(1)}),
            "made for another model: it replaces",
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
