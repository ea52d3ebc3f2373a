"""Which folders are adapters, and which configurations can be merged: everything else is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dasheng_edge.export.adapter.adapter import open_adapter
from dasheng_edge.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from dasheng_edge.export.files.pull_record import PULL_RECORD
from dasheng_edge.runtime.errors import AdapterError
from tests.fixtures.adapter_files import change_config

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LEAVES = ["qkv", "attn.proj", "net.0", "net.2", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint)


@pytest.fixture
def adapter(tiny_adapter: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_adapter, tmp_path / "adapter"))


def test_settings_of_training_do_not_matter(checkpoint: Checkpoint, adapter: Path) -> None:
    change_config(
        adapter, lora_dropout=0.3, task_type="CAUSAL_LM", init_lora_weights="gaussian", fan_in_fan_out=None,
        base_model_name_or_path=3, a_newer_field_of_peft=None, qalora_group_size=16, arrow_config={},
        loftq_config={"loftq_bits": 4}, megatron_core="megatron.core", bias="lora_only",
    )  # fmt: skip
    assert open_adapter(adapter, checkpoint).low_rank


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": LEAVES},
        {"target_modules": [*LEAVES, "k_proj"]},  # a target without tensors
        {"target_modules": "all-linear"},
        {"target_modules": LEAVES, "layers_to_transform": [0, 1]},
        {"target_modules": [*LEAVES, "net.0", "net.2"], "exclude_modules": ["lm_head"]},
        {"target_modules": r".*\.(qkv|proj|\d)|.*_proj", "exclude_modules": r".*\.self_attn\..*"},
    ],
)
def test_other_ways_to_name_the_same_modules(
    checkpoint: Checkpoint, adapter: Path, values: dict[str, object], request: pytest.FixtureRequest
) -> None:
    layered = "layers_to_transform" in values
    change_config(adapter, **values)
    if layered:  # net.0 and net.2 are in no numbered layer
        with pytest.raises(AdapterError, match=r"of audio_projector\.net\.\d, but its configuration"):
            open_adapter(adapter, checkpoint)
    else:
        assert open_adapter(adapter, checkpoint).low_rank.keys() == (
            open_adapter(request.getfixturevalue("tiny_adapter"), checkpoint).low_rank.keys()
        )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "IA3", "peft_type is 'IA3', only 'LORA' can be merged; merge it with peft"),
        ("peft_type", "ADALORA", "peft_type is 'ADALORA'"),
        ("lora_bias", True, "lora_bias = True is not supported: only LoRA and DoRA are"),
        ("target_parameters", ["x"], r"target_parameters = \['x'\] is not supported"),
        ("trainable_token_indices", [1], "trainable_token_indices"),
        ("layer_replication", [[0, 1]], "layer_replication .* repeats layers"),
        ("alora_invocation_tokens", [1], "alora_invocation_tokens .* acts on some tokens only"),
        ("arrow_config", {"top_k": 2}, "arrow_config .* chooses between adapters"),
        ("megatron_config", {"x": 1}, "megatron_config .* are Megatron's"),
        ("use_qalora", True, "use_qalora = True is not supported"),
        ("kasa_config", {"alpha": 1}, "kasa_config"),
        ("a_newer_field_of_peft", 7, "a_newer_field_of_peft = 7 is not supported"),
        ("init_lora_weights", "pissa_niter_16", "'pissa_niter_16' changes the base weights.*path_initial_model"),
        ("init_lora_weights", "olora", "changes the base weights.*path_initial_model"),
        ("init_lora_weights", "loftq", "changes the base weights.*the model that LoftQ wrote"),
        ("init_lora_weights", "something_new", "changes the base weights.*expected one of True, False, 'gaussian'"),
        ("r", "abc", "adapter_config.json: r is 'abc', expected a valid integer; save the adapter again"),
        ("r", 0, "r is 0, expected greater than 0"),
        ("lora_alpha", None, "lora_alpha is None, expected a valid number"),
        ("lora_alpha", 1e40, r"lora_alpha is 1e\+40, expected what float32 can hold, at most 3e\+38; save"),
        ("alpha_pattern", {"net.2": -1e39}, r"alpha_pattern\.net\.2 is -1e\+39, expected what float32 can hold"),
        pytest.param("lora_alpha", 10**400, "lora_alpha is 10*[.]{3}0*, expected", id="huge alpha"),
        pytest.param("r", 10**400, "r is 10*[.]{3}0*, expected less than", id="huge r"),
        pytest.param("rank_pattern", {"net": 10**400}, r"net is 10*[.]{3}0*, expected less than", id="huge rank"),
        ("rank_pattern", [1], "rank_pattern is .*expected a valid dictionary"),
        ("bias", "some", "bias is 'some', expected 'none', 'all' or 'lora_only'"),
        ("target_modules", None, "target_modules is not stated"),
        ("target_modules", "net(", r"target_modules has 'net\(', not a regular expression"),
        ("rank_pattern", {"net(": 3}, r"rank_pattern has 'net\(', not a regular expression"),
        ("layers_to_transform", [0], "peft refuses it: .*cannot be used when `target_modules` is a str"),
        ("target_modules", ["qkv"], r"holds lora_A of .*, but its configuration \(target_modules, exclude"),
        ("exclude_modules", r".*net\.2", r"holds lora_A of audio_projector\.net\.2, but its configuration"),
        ("modules_to_save", ["net.2"], r"holds lora_A of audio_projector\.net\.2, but its configuration"),
        ("use_dora", True, r"has lora_A, lora_B, expected lora_A, lora_B, lora_magnitude_vector \(use_dora True\)"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(
    checkpoint: Checkpoint, adapter: Path, key: str, value: object, message: str
) -> None:
    change_config(adapter, **{key: value})
    with pytest.raises(AdapterError, match=message):
        open_adapter(adapter, checkpoint)


def test_what_is_no_adapter_is_refused(checkpoint: Checkpoint, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"is not an adapter: no adapter_config\.json"):
        open_adapter(tmp_path / "absent", checkpoint)
    with pytest.raises(AdapterError, match=r"safetensors is a file, expected the folder .* give .*adapter$"):
        open_adapter(adapter / WEIGHTS, checkpoint)
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"but adapter_model\.bin, a pickle, which is not opened"):
        open_adapter(adapter, checkpoint)
    (adapter / "adapter_model.bin").rename(adapter / "adapter_model-00001-of-00002.safetensors")
    with pytest.raises(AdapterError, match=r"but adapter_model-00001-of-00002\.safetensors;"):
        open_adapter(adapter, checkpoint)
    (adapter / "adapter_model-00001-of-00002.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"no adapter_model\.safetensors;"):
        open_adapter(adapter, checkpoint)
    (adapter / CONFIG).write_text("{")
    with pytest.raises(AdapterError, match="cannot read"):
        open_adapter(adapter, checkpoint)
    (adapter / CONFIG).write_text("[" * 100_000)
    with pytest.raises(AdapterError, match=r"cannot read .*recursion"):
        open_adapter(adapter, checkpoint)
    (adapter / CONFIG).write_text("[]")
    with pytest.raises(AdapterError, match="holds a list, expected a JSON object"):
        open_adapter(adapter, checkpoint)


def test_a_truncated_adapter_is_refused(checkpoint: Checkpoint, adapter: Path) -> None:
    weights = adapter / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(AdapterError, match="is truncated or not safetensors"):
        open_adapter(adapter, checkpoint)


def test_a_trainers_checkpoint_is_an_adapter(checkpoint: Checkpoint, adapter: Path, tmp_path: Path) -> None:
    """As transformers' Trainer leaves it, which mdl-toolkit uses; nothing of the rest is opened."""
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (adapter / name).write_bytes(b"not a pickle")
    (adapter / "trainer_state.json").write_text("{")
    (tmp_path / "birds").mkdir()
    folder = adapter.rename(tmp_path / "birds" / "checkpoint-1200")
    assert open_adapter(folder, checkpoint).name == "birds"


def test_an_adapter_of_ms_swift_is_an_adapter(checkpoint: Checkpoint, adapter: Path) -> None:
    (adapter / "args.json").write_text(json.dumps({"tuner_type": "lora"}))
    (adapter / "additional_config.json").write_text('{"lora_dtype": null, "lorap_lr_ratio": 16.0}')
    assert open_adapter(adapter, checkpoint).low_rank
    (adapter / "vit.safetensors").write_bytes(b"")
    with pytest.raises(AdapterError, match=r"holds vit\.safetensors, an encoder that ms-swift trained in full"):
        open_adapter(adapter, checkpoint)


@pytest.mark.parametrize("run", ["", "v0-20250102-030405"])
def test_a_folder_of_checkpoints_names_the_newest(
    checkpoint: Checkpoint, adapter: Path, tmp_path: Path, run: str
) -> None:
    for step in (900, 1000, 200):
        shutil.copytree(adapter, tmp_path / "output" / run / f"checkpoint-{step}")
    (tmp_path / "output" / "final").mkdir()
    (tmp_path / "output" / "final" / "config.json").write_text("{}")
    with pytest.raises(AdapterError, match=r"but holds 3: .* newest is .*checkpoint-1000$"):
        open_adapter(tmp_path / "output", checkpoint)
    with pytest.raises(AdapterError, match=r"but a whole checkpoint .* export it by itself, as the checkpoint"):
        open_adapter(tmp_path / "output" / "final", checkpoint)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("birds", "birds"),
        ("birds/adapter", "birds"),
        ("birds/final", "birds"),
        ("birds/output/v0-20250102-030405/checkpoint-300", "birds"),
        (f"models--someone--birds/snapshots/{'0' * 40}", "birds"),
        ("output/output/output/output/final", "final"),
    ],
)
def test_an_adapter_has_the_most_telling_name(
    checkpoint: Checkpoint, adapter: Path, tmp_path: Path, folder: str, name: str
) -> None:
    where = Path(shutil.copytree(adapter, tmp_path / folder))
    opened = open_adapter(where, checkpoint)
    assert (opened.name, opened.origin) == (name, None)
    assert opened.provenance == f"{name} {opened.sha256}"


def test_an_adapter_is_not_called_as_its_owner(
    checkpoint: Checkpoint, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    where = Path(shutil.copytree(adapter, tmp_path / "alice" / "output" / "checkpoint-300"))
    assert open_adapter(where, checkpoint).name == tmp_path.name


def test_an_adapter_keeps_where_it_was_pulled_from(checkpoint: Checkpoint, adapter: Path) -> None:
    record = adapter / PULL_RECORD
    record.write_text(json.dumps({"repo": "someone/birds", "revision": "0" * 40}))
    opened = open_adapter(adapter, checkpoint)
    assert opened.name == "birds"
    assert opened.provenance == f"someone/birds@{'0' * 40} {opened.sha256}"
    record.write_text('{"repo": "someone/birds"}')
    with pytest.raises(AdapterError, match=r"dasheng-edge\.json: revision is missing; remove it, or pull again"):
        open_adapter(adapter, checkpoint)
