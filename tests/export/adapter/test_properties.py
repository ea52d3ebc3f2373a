"""Merging adapters equals peft's own merge, whatever the configuration."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example, HealthCheck.filter_too_much)
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tests.fixtures.peft_merges import Cases

    return Cases(tmp_path_factory.mktemp("lora"))


def check(cases: Any, examples: int, record: Record) -> None:
    """Draw so many cases, hold each against peft, and record how many there were and how far off the worst was."""
    from tests.fixtures.lora_cases import random_case
    from tests.fixtures.peft_merges import TOLERANCE

    seen: list[float] = []

    @settings(max_examples=examples, deadline=None, suppress_health_check=_SLOW)
    @given(st.randoms(use_true_random=False))
    def equals_peft(random: Random) -> None:
        case = random_case(random)
        seen.append(cases.worst_difference(case))
        assert seen[-1] <= TOLERANCE, case

    equals_peft()
    record("configurations", len(seen))
    record("worst_difference", max(seen))
    assert len(seen) >= examples


def test_merging_equals_pefts_merge(cases: Any, record_property: Record) -> None:
    check(cases, 60, record_property)


@pytest.mark.slow
def test_merging_equals_pefts_merge_for_many_configurations(cases: Any, record_property: Record) -> None:
    check(cases, 500, record_property)


def test_a_case_that_differs_is_seen(cases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: with other values, and with other tensors."""
    from dasheng_edge.export.adapter.merge import MergedTensors
    from tests.fixtures.lora_cases import random_case

    case = random_case(Random(3))
    right = MergedTensors.rows
    monkeypatch.setattr(MergedTensors, "rows", lambda self, *block: right(self, *block) * (1 + 3e-6))
    assert 1e-6 < cases.worst_difference(case) < 1e-5
    monkeypatch.setattr(MergedTensors, "rows", lambda self, *block: not_a_number(right(self, *block), block[0]))
    assert math.isinf(cases.worst_difference(case))
    monkeypatch.setattr(MergedTensors, "names", lambda _self, _prefix: ["decoder.model.norm.weight"])
    assert math.isinf(cases.worst_difference(case))


def not_a_number(rows: torch.Tensor, name: str) -> torch.Tensor:
    """Rows as they should be, but for those of a tensor that is not the first."""
    return rows * math.nan if name.endswith("mlp.down_proj.weight") else rows


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_tensor_of_zeros_is_compared_too(cases: Any, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    from dasheng_edge.export.adapter.merge import MergedTensors
    from tests.fixtures.lora_cases import random_case
    from tests.fixtures.peft_merges import difference

    case, name = random_case(Random(3)), "decoder.model.norm.weight"
    model, merged, right = cases.model(case), MergedTensors(cases.checkpoint(case)), MergedTensors.rows
    model.get_parameter(name).data.zero_()
    monkeypatch.setattr(
        MergedTensors, "rows", lambda self, *of: right(self, *of).fill_(value) if of[0] == name else right(self, *of)
    )
    assert difference(merged, model, case.layout) == value


def test_cases_are_the_same_for_a_seed() -> None:
    from tests.fixtures.lora_cases import random_case

    assert random_case(Random(7)) == random_case(Random(7))
    features = {feature for seed in range(200) for feature in random_case(Random(seed)).features()}
    wanted = {"use_dora", "use_rslora", "tied head", "3 adapters", "modules_to_save", "bias: all", "layers_pattern"}
    assert wanted <= features
    assert {"layout: published", "layout: renamed", "layout: two branches"} <= features


@pytest.mark.filterwarnings("ignore")  # peft's
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("saved", [None, "audio_encoder.norm", "audio_encoder.patch_embed"])
def test_the_acoustic_branch_is_merged_under_its_stored_names(cases: Any, saved: str | None, *, use_dora: bool) -> None:
    from tests.fixtures.lora_cases import Case, RandomAdapter
    from tests.fixtures.peft_merges import TOLERANCE

    acoustic = "audio_encoder.patch_embed"
    targets = ["qkv", "audio_encoder.model.patch_embed.proj" if saved == acoustic else acoustic]
    arguments = {"target_modules": targets, "use_dora": use_dora, "modules_to_save": saved and [saved]}
    case = Case("two branches", tied=True, adapters=(RandomAdapter(arguments, torch.float32, "auto", 1),))
    assert cases.worst_difference(case) <= TOLERANCE
