"""What else lies in a folder beside the weights, what their names have around them, and values that are no numbers."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dasheng_edge.export.adapter.merge import open_adapters
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.checkpoint.layout import unwrapped
from dasheng_edge.runtime.errors import CheckpointError, CheckpointFileError, CheckpointVariantError
from tests.fixtures.tiny_checkpoint import write_tiny_checkpoint

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
NAME = "decoder.model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def add_shards(folder: Path, tensors: dict[str, Any]) -> list[str]:
    """Shards of other weights, and their index; the names of all three."""
    files = [f"model-0000{number + 1}-of-00002.safetensors" for number in range(2)]
    places: dict[str, str] = {}
    for number, file in enumerate(files):
        part = {name: tensors[name] for name in list(tensors)[number::2]}
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return [*files, INDEX]


# Which weights are read


@pytest.mark.parametrize("stale", [False, True])
def test_the_single_file_comes_before_the_index(checkpoint: Path, stale: bool) -> None:
    before = open_checkpoint(checkpoint)
    assert before.warnings == ()
    names = add_shards(checkpoint, {name: 0 * tensor for name, tensor in load_file(checkpoint / WHOLE).items()})
    if stale:
        for name in names[:2]:
            (checkpoint / name).unlink()
        names = [INDEX]
    opened = open_checkpoint(checkpoint)

    assert torch.equal(opened.rows(NAME, 0, 9), before.rows(NAME, 0, 9))
    assert (opened.files, opened.sha256()) == ((checkpoint / WHOLE,), before.sha256())
    assert opened.left_aside == tuple(names)
    (sentence,) = opened.warnings
    assert all(name in sentence for name in (*names, "the weights are those of model.safetensors"))


def test_transformers_reads_the_same_file(checkpoint: Path) -> None:
    from transformers.modeling_utils import _get_resolved_checkpoint_files

    whole = load_file(checkpoint / WHOLE)
    resolve: Any = _get_resolved_checkpoint_files
    asked = dict.fromkeys(inspect.signature(resolve).parameters) | {"subfolder": "", "local_files_only": True}
    for kept in ({WHOLE, INDEX}, {INDEX}, {WHOLE}):
        add_shards(checkpoint, whole)
        save_file(whole, checkpoint / WHOLE)
        for name in {WHOLE, INDEX} - kept:
            (checkpoint / name).unlink()
        files, _ = resolve(**asked | {"pretrained_model_name_or_path": str(checkpoint)})
        assert {Path(file).resolve() for file in files or ()} == {*open_checkpoint(checkpoint).files}


def test_what_a_training_leaves_is_no_other_weights(checkpoint: Path) -> None:
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin", "adapter_model.safetensors", "decoder.gguf"):
        (checkpoint / name).write_bytes(b"x")
    assert open_checkpoint(checkpoint).left_aside == ()
    others = ("model.fp16.safetensors", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json")
    for name in others:
        (checkpoint / name).write_bytes(b"x")
    assert open_checkpoint(checkpoint).left_aside == others


def test_a_configuration_may_name_the_file(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    before = open_checkpoint(checkpoint)
    shutil.copy(checkpoint / WHOLE, checkpoint / "mine.safetensors")
    for name, right in [
        ("mine.safetensors", True),
        ("gone.safetensors", False),
        ("../x.safetensors", False),
        (3, False),
    ]:
        (checkpoint / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))
        if right:
            opened = open_checkpoint(checkpoint)
            assert (opened.read_from, opened.left_aside) == (name, (WHOLE,))
            assert opened.sha256() == before.sha256()
        else:
            with pytest.raises(CheckpointFileError, match=r"transformers_weights .*, expected safetensors beside it"):
                open_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "file",
    ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "x" * 300 + ".safetensors",
     "a\0.safetensors", "model.bin", "C:\\model.safetensors", "..\\model.safetensors", None, {"a": 1}],
)  # fmt: skip
def test_an_index_names_files_beside_it(tmp_path: Path, file: object) -> None:
    folder = write_tiny_checkpoint(tmp_path / "sharded", shards=2)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][NAME] = file
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointFileError, match="expected a file name inside the folder"):
        open_checkpoint(folder)


@pytest.mark.parametrize("path", ["a" * 300, "a\0b", "a/" * 3000])
def test_a_path_that_no_file_can_have(path: str) -> None:
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


# What is around names


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("_orig_mod.decoder.model.layers.0.mlp.up_proj.weight", NAME),
        ("decoder.model.layers.0._orig_mod.mlp.up_proj.weight", NAME),
        ("module.decoder.module.model.layers.0.mlp.up_proj.module.weight", NAME),
        ("decoder.model.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.mlp.up_proj.weight", NAME),
        ("decoder.model.layers.0.base_model.model.mlp.up_proj.weight", NAME),
        ("audio_encoder.model.norm.weight", "audio_encoder.model.norm.weight"),
    ],
)
def test_what_training_puts_around_modules(stored: str, name: str) -> None:
    assert unwrapped(stored) == name


@pytest.mark.parametrize("wrapper", ["_orig_mod", "module", "_fsdp_wrapped_module", "model", "base_model.model"])
def test_wrapped_modules_are_the_same_model(checkpoint: Path, tiny_adapter: Path, tmp_path: Path, wrapper: str) -> None:
    plain = open_checkpoint(checkpoint)
    tensors = load_file(checkpoint / WHOLE)
    inside = {name.replace(".0.", f".0.{wrapper}.", 1): tensor for name, tensor in tensors.items()}
    around = {f"{wrapper}.{name}": tensor for name, tensor in inside.items()}
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    for stored in (inside, around):
        save_file(stored, checkpoint / WHOLE)
        opened = open_checkpoint(checkpoint)
        assert opened.sources.keys() == plain.sources.keys()
        assert torch.equal(opened.rows(NAME, 0, 5), tensors[NAME][:5])
        if stored is inside:  # an adapter knows modules by their plain names, with what is before all of them
            assert len(open_adapters([adapter], opened).adapted()) == 12
    save_file({**inside, NAME: tensors[NAME].clone()}, checkpoint / WHOLE)
    with pytest.raises(CheckpointVariantError, match="are one tensor under two names"):
        open_checkpoint(checkpoint)


def test_buffers_that_are_computed_are_not_needed(checkpoint: Path) -> None:
    before = open_checkpoint(checkpoint)
    layer = "decoder.model.layers.0.self_attn"
    buffers = {
        f"{layer}.rotary_emb.inv_freq": torch.ones(32), "decoder.model.rotary_emb.original_inv_freq": torch.ones(32),
        f"{layer}.rotary_emb.cos_cached": torch.ones(1, 1, 64, 32, dtype=torch.float64),
        "decoder.model.position_ids": torch.arange(7)[None], "decoder.model.causal_mask": torch.ones(4, 4).bool(),
        "audio_encoder.front_end.spectrogram_window": torch.ones(512),
    }  # fmt: skip
    save_file(load_file(checkpoint / WHOLE) | buffers, checkpoint / WHOLE)
    opened = open_checkpoint(checkpoint)

    assert {*opened.ignored} == {*before.ignored, *buffers}
    assert opened.sources.keys() == before.sources.keys()


# Values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_value_that_is_no_number_is_named_with_its_place(checkpoint: Path, value: float, dtype: torch.dtype) -> None:
    tensors = {
        name: tensor.to(dtype) if tensor.shape else tensor for name, tensor in load_file(checkpoint / WHOLE).items()
    }
    tensors[NAME][7, 3] = value
    save_file(tensors, checkpoint / WHOLE)
    opened = open_checkpoint(checkpoint)

    opened.rows(NAME, 0, 7)
    with pytest.raises(CheckpointFileError, match=rf"holds NaN or infinity in {NAME}, first at \[7, 3\] \(1 of the"):
        opened.rows(NAME, 5, 9)


def test_large_values_whose_sum_is_infinite_are_numbers(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / WHOLE)
    tensors[NAME].fill_(3e38)
    save_file(tensors, checkpoint / WHOLE)
    assert open_checkpoint(checkpoint).rows(NAME, 0, 9).isfinite().all()
