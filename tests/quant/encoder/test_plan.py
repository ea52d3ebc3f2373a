"""The choice of precisions against all there are."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest

from dasheng_edge.quant.encoder.plan import STEPS, Alone, Noise, choose
from dasheng_edge.quant.encoder.precisions import PRECISIONS, MatrixPrecision
from dasheng_edge.quant.encoder.stages import group_of

MATRICES = {f"audio_encoder.blocks.{i}.{part}": 1000 for i in range(3) for part in ("attn.qkv", "mlp.fc1")}
NOISE = {"int4-block": 1e-2, "int8": 2e-4, "int8-block": 1e-4, "fp16": 1e-7, "fp32": 0.0}


def alone_of(weights: tuple[float, ...]) -> Alone:
    return lambda group, step: weights[int(group[-1])] * NOISE[step]


def whole_of(weights: tuple[float, ...], more: float = 1.0) -> tuple[Noise, list[int]]:
    """Noise that adds up, times `more`; and a list that grows with each measurement."""
    measured: list[int] = []

    def noise(precisions: Mapping[str, MatrixPrecision]) -> float:
        measured.append(1)
        groups = {group_of(matrix): step for matrix, step in precisions.items()}
        return more * sum(weights[int(group[-1])] * NOISE[step] for group, step in groups.items())

    return noise, measured


def size_of(steps: tuple[MatrixPrecision, ...]) -> float:
    return sum(2000 * PRECISIONS[step].value_bytes for step in steps)


@pytest.mark.parametrize("least_db", [15.0, 22.0, 30.0, 38.0, 45.0, 70.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (10.0, 1.0, 0.1), (0.2, 5.0, 0.2)])
def test_near_the_smallest_that_fits(weights: tuple[float, ...], least_db: float) -> None:
    chosen = choose(MATRICES, least_db, alone_of(weights), whole_of(weights)[0])
    budget = 10 ** (-least_db / 10)
    assert chosen.noise <= budget
    fitting = [
        size_of(steps) for steps in itertools.product(STEPS, repeat=3)
        if sum(weight * NOISE[step] for weight, step in zip(weights, steps, strict=True)) <= budget
    ]  # fmt: skip
    got = sum(1000 * PRECISIONS[step].value_bytes for step in chosen.precisions.values())
    assert got <= 1.35 * min(fitting)


def test_noise_that_adds_up_to_more_is_repaired() -> None:
    whole, measured = whole_of((1.0, 1.0, 1.0), more=8.0)
    chosen = choose(MATRICES, 20.0, alone_of((1.0, 1.0, 1.0)), whole)
    assert chosen.noise <= 1e-2
    assert len(measured) <= 3  # what it was off by is learnt, since measuring the whole is dear
    assert size_of(STEPS[:1] * 3) < sum(1000 * PRECISIONS[step].value_bytes for step in chosen.precisions.values())


def test_what_only_float32_gives_is_float32() -> None:
    chosen = choose(MATRICES, 300.0, alone_of((1.0, 1.0, 1.0)), whole_of((1.0, 1.0, 1.0))[0])
    assert set(chosen.precisions.values()) == {"fp32"}
    assert np.isclose(chosen.noise, 0)


def test_matrices_of_a_block_and_of_the_projector_go_together() -> None:
    assert group_of("audio_encoder.blocks.11.mlp.fc2") == "audio_encoder.blocks.11"
    assert group_of("audio_projector.net.0") == group_of("audio_projector.net.2") == "audio_projector.net"
