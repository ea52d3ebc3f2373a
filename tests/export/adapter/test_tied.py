"""Adapters of a model whose head is its embedding: what peft's merge makes of the two, and whether they stay one."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dasheng_edge.runtime.errors import AdapterError
from tests.fixtures.adapter_files import Tensors, change_tensors

E, H = "embed_tokens", "lm_head"


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tests.fixtures.peft_merges import Cases

    return Cases(tmp_path_factory.mktemp("tied"))


def tied_case(*adapters: dict[str, Any]) -> Any:
    """A case of a tied checkpoint; whether peft stores the vocabulary is left to it."""
    from tests.fixtures.lora_cases import Case, RandomAdapter

    many = (RandomAdapter(arguments, torch.float32, "auto", seed) for seed, arguments in enumerate(adapters))
    return Case("published", tied=True, adapters=tuple(many))


def opened(cases: Any, case: Any, folder: Path) -> Any:
    """Our merge of a case."""
    from dasheng_edge.export.adapter.merge import open_adapters
    from tests.fixtures.peft_merges import write_adapter

    folders = [write_adapter(folder / str(i), adapter, cases.model(case)) for i, adapter in enumerate(case.adapters)]
    return open_adapters(folders, cases.checkpoint(case))


def lora(*targets: str, **more: Any) -> dict[str, Any]:
    """Arguments of LoraConfig."""
    return {"target_modules": ["net.0", *targets], "r": 2, **more}


TYING = {"ensure_weight_tying": True}


@pytest.mark.filterwarnings("ignore")  # peft's: it warns of tied heads, rightly
@pytest.mark.parametrize(
    ("adapters", "stays"),
    [
        ((lora(),), True),
        ((lora(E),), True),
        ((lora(H),), True),
        ((lora(E, H),), True),
        ((lora(E, H, use_dora=True),), True),
        ((lora(modules_to_save=[E]),), False),
        ((lora(modules_to_save=[H]),), False),
        ((lora(modules_to_save=[E, H]),), False),
        ((lora(H, modules_to_save=[E]),), False),
        ((lora(E, modules_to_save=[H], use_dora=True),), False),
        ((lora(modules_to_save=[E], **TYING),), True),
        ((lora(modules_to_save=[H], **TYING),), True),
        ((lora(E), lora(modules_to_save=[H]), lora(E, H)), False),
        ((lora(modules_to_save=[E]), lora(H), lora(E, H, use_dora=True)), False),
        ((lora(modules_to_save=[H]), lora(modules_to_save=[E], **TYING)), False),
    ],
)
def test_a_tied_head_becomes_what_peft_makes_of_it(
    cases: Any, tmp_path: Path, adapters: tuple[dict[str, Any], ...], *, stays: bool
) -> None:
    case = tied_case(*adapters)
    assert cases.worst_difference(case) <= 1e-6

    merged = opened(cases, case, tmp_path)
    assert merged.tied is stays
    assert ("decoder.lm_head.weight" in merged.names("decoder.")) is not stays
    if not stays:
        assert merged.names("decoder.")[-1] == "decoder.lm_head.weight"
        assert merged.shape("decoder.lm_head.weight") == merged.shape("decoder.model.embed_tokens.weight")
        assert "lm_head.weight" in merged.state_dict("decoder.")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", [E, H])
def test_pefts_double_merge_is_refused(cases: Any, tmp_path: Path, target: str) -> None:
    with pytest.raises(AdapterError, match=re.escape("ensure_weight_tying with LoRA on the embedding")):
        opened(cases, tied_case(lora(target, **TYING)), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_magnitudes_of_an_embedding_are_measured_too(cases: Any, tmp_path: Path) -> None:
    from dasheng_edge.export.adapter.adapter import check_finite
    from dasheng_edge.export.adapter.merge import measured_merge_error

    merged = opened(cases, tied_case(lora(E, use_dora=True), lora("qkv", "patch_embed.proj", use_dora=True)), tmp_path)
    assert len(merged.adapted()) == 1 + 1 + 2 + 1  # embedding, projector, two blocks, the patch convolution
    assert 0 < measured_merge_error(merged) < 1e-6
    for adapter in merged.adapters:
        check_finite(adapter)


@pytest.mark.filterwarnings("ignore")
def test_a_magnitude_that_is_not_finite_is_refused(cases: Any, tmp_path: Path) -> None:
    from dasheng_edge.export.adapter.adapter import check_finite, open_adapter

    case = tied_case(lora("qkv", use_dora=True, bias="lora_only"))
    name = "audio_encoder.blocks.1.attn.qkv"
    opened(cases, case, tmp_path)
    for stored, said in (
        (f"base_model.model.{name}.lora_magnitude_vector", f"{name}.weight (lora_magnitude_vector)"),
        (f"base_model.model.{name}.base_layer.bias", f"{name}.bias"),
    ):
        change_tensors(tmp_path / "0", partial(fill, stored, torch.inf))
        with pytest.raises(AdapterError, match=re.escape(f"NaN or infinity in {said}")):
            check_finite(open_adapter(tmp_path / "0", cases.checkpoint(case)))
        change_tensors(tmp_path / "0", partial(fill, stored, 1.0))


def fill(name: str, value: float, tensors: Tensors) -> None:
    """Overwrite one value of a tensor."""
    tensors[name][3] = value
