"""What becomes of each matrix of an encoder: its precision, and whether its inputs are smoothed.

`mixed` is the smallest encoder that keeps a stated SNR: a precision for each block, chosen by what it costs at the
output. Each block is quantized alone to each precision, and the noise that this adds at the output is measured. Noise
powers of different blocks are taken to add up, which the finished encoder is then measured for: where they add up to
more, the blocks that free most noise for a byte get a finer precision until it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from dasheng_edge.runtime.deviation import noise_share_of
from dasheng_edge.runtime.progress import Advance

from .graphs import convert
from .precisions import PRECISIONS, MatrixPrecision
from .smoothing import Smoothing, SmoothingSearch, fold
from .stages import Chain, group_of, groups_of

# The smallest first.
STEPS: tuple[MatrixPrecision, ...] = tuple(sorted(PRECISIONS, key=lambda name: PRECISIONS[name].value_bytes))

Alone = Callable[[str, MatrixPrecision], float]
Noise = Callable[[Mapping[str, MatrixPrecision]], float]


@dataclass(frozen=True)
class Choice:
    """Precision of each matrix, and the share of the output's power that differs with them."""

    precisions: dict[str, MatrixPrecision]
    noise: float


def choose(matrices: Mapping[str, int], min_snr_db: float, alone: Alone, whole: Noise) -> Choice:
    """Choose for matrices of so many values each.

    `alone` measures the model with one group in a precision, `whole` with all matrices in theirs. It always ends, since
    float32 everywhere adds no noise.
    """
    groups = groups_of(matrices)
    values = {group: sum(matrices[matrix] for matrix in members) for group, members in groups.items()}
    budget = noise_share_of(min_snr_db)
    added: dict[tuple[str, MatrixPrecision], float] = {
        (group, step): alone(group, step) if step != "fp32" else 0.0 for group in groups for step in STEPS
    }
    chosen = dict.fromkeys(groups, 0)  # place in STEPS

    def estimate() -> float:
        return sum(added[group, STEPS[step]] for group, step in chosen.items())

    factor = 1.0  # what is measured over what was estimated
    while True:
        while factor * estimate() > budget:
            group, step = _finer(chosen, added, values)
            chosen[group] = step
        precisions: dict[str, MatrixPrecision] = {
            matrix: STEPS[chosen[group]] for group, members in groups.items() for matrix in members
        }
        got = whole(precisions)
        if got <= budget:
            return Choice(precisions, got)
        factor = max(factor, got / estimate() if estimate() else 1.0)
        group, step = _finer(chosen, added, values)
        chosen[group] = step


def _finer(
    chosen: Mapping[str, int], added: Mapping[tuple[str, MatrixPrecision], float], values: Mapping[str, int]
) -> tuple[str, int]:
    """The group and its finer step that remove most noise for a byte."""

    def gain(group: str, step: int) -> float:
        saved = added[group, STEPS[chosen[group]]] - added[group, STEPS[step]]
        finer, coarser = PRECISIONS[STEPS[step]], PRECISIONS[STEPS[chosen[group]]]
        more = values[group] * (finer.value_bytes - coarser.value_bytes)
        return saved / more

    options = [(group, step) for group, now in chosen.items() for step in range(now + 1, len(STEPS))]
    return max(options, key=lambda option: gain(*option))


@dataclass(frozen=True)
class Plan:
    """Precision of each matrix, and the smoothing of some."""

    precisions: Mapping[str, MatrixPrecision]
    smoothing: Mapping[str, Smoothing]

    def apply(self, model: ir.Model) -> None:
        """Change the matrices that a graph has.

        Raises:
            QuantizeError: a weight does not fit its precision.
        """
        fold(model, self.smoothing)
        convert(model, self.precisions)


class Planner:
    """Measures groups of matrices alone and plans with the results; `advance` is told of each group."""

    def __init__(self, chain: Chain, *, smooth: bool, advance: Advance) -> None:
        self._chain, self._advance = chain, advance
        self._search = SmoothingSearch(chain) if smooth else None
        self._places = {group_of(name): index for index, stage in enumerate(chain.stages) for name in stage.matrices}
        self._searched: dict[tuple[str, MatrixPrecision], Mapping[str, Smoothing]] = {}

    def alone(self, group: str, step: MatrixPrecision) -> float:
        """Share of the power at the end of the chain that differs with one group in a precision."""
        index = self._places[group]
        matrices = self._chain.stages[index].matrices
        plan = self.plan(dict.fromkeys(matrices, step))
        return self._chain.noise(index, plan.apply, at_end=True)

    def plan(self, precisions: Mapping[str, MatrixPrecision]) -> Plan:
        """These precisions, with the smoothing that suits them, which is searched for once."""
        smoothing: dict[str, Smoothing] = {}
        for group, members in groups_of(precisions).items():
            smoothing |= self._smoothing(group, precisions[members[0]])
        return Plan(precisions, smoothing)

    def _smoothing(self, group: str, step: MatrixPrecision) -> Mapping[str, Smoothing]:
        if step == "fp32":
            return {}
        if (group, step) not in self._searched:
            search = self._search if PRECISIONS[step].scales else None
            self._searched[group, step] = search.of(self._places[group], step) if search else {}
            self._advance(1)
        return self._searched[group, step]
