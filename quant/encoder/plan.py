"""What becomes of each matrix of an encoder: its precision, and whether its inputs are smoothed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from dasheng_edge.runtime.progress import Advance

from .graphs import convert
from .mixed import group_of, groups_of
from .precisions import PRECISIONS, MatrixPrecision
from .smoothing import Smoothing, SmoothingSearch, fold
from .stages import Chain


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


def uniform(matrices: Iterable[str], precision: MatrixPrecision) -> Plan:
    """All matrices in one precision, none smoothed."""
    return Plan({matrix: precision for matrix in matrices}, {})  # noqa: C420  # typed


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
