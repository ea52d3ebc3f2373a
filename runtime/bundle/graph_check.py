"""What a graph of a bundle must be before ONNX Runtime, which ends the process on some that are not, sees it.

The shapes of all values are computed for a few runs, the shortest and the longest among them. So it is known, before
anything is loaded, that the graph keeps to the counting law, and that it takes neither memory nor time without end.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.errors import BundleFileError, MemoryShortError

from .bundle import CUDA_GRAPHS, weights_file
from .graph_file import FLOAT, INT64, ITEM_BYTES, Described, GraphError, GraphFile, read_graph_file
from .graph_operators import outputs_of, work_of
from .graph_shapes import Shape, Value

IR_VERSIONS = range(8, 12)
OPSETS: Mapping[str, range] = {"": range(23, 24), "com.microsoft": range(1, 2)}
MAX_NODES = 20_000  # an encoder of 40 blocks in int8 has 1,500
MAX_LIVE_BYTES = 1 << 30  # of all values that are held at once in a run; the largest encoder has 30 MB
# Multiplications and values written for a chunk, of a quarter of a second at least: a weight is used once for each of
# its patches, attention comes on top.
MAX_WORK, MAX_USES = 2_000_000_000, 1000
_SOURCES = {cuda: plain for plain, cuda in CUDA_GRAPHS.items()}
FIX = "copy the bundle again, or export it again"


@dataclass(frozen=True)
class Case:
    """A run of a graph: what goes in, and what shapes must come out. -1 is what the graph itself states, or any width.

    Shapes are those of float32 arrays; an array of int64 is given as it is. `uses` is how often a weight may be used.
    """

    feed: Mapping[str, Shape | NDArray[np.int64]]
    wanted: Mapping[str, Shape]
    uses: int = MAX_USES


def max_uses(patches: int) -> int:
    """Of a weight in a run for so many patches."""
    return 4 * max(patches, 16)


Shapes: TypeAlias = Mapping[str, Shape]


class Checked(NamedTuple):
    """A graph that may be run: the shapes of its inputs and outputs in the last case that it was checked for.

    `separable`: what it makes of a row does not hang on what else is in the run. It does in int8, where all activations
    of a run share a scale.
    """

    shapes: Shapes
    separable: bool


def check_graph(path: Path, cases: Sequence[Case], several: Case | None = None) -> Checked:
    """Check a graph for some runs, and for one of several chunks where the graph takes them and keeps them apart.

    Graphs made before the first axis could vary take one chunk.

    Raises:
        BundleFileError: it is no graph of a bundle, or not the one that the manifest describes.
        MemoryShortError: there is not enough memory to map it.
    """
    try:
        graph = read_graph_file(path)
        _check_parts(graph, path)
        shapes: Shapes = {}
        separable = all(node.operator != "DynamicQuantizeLinear" for node in graph.nodes)
        varies = all(result.shape is not None and result.shape[:1] == (None,) for result in graph.outputs.values())
        with np.errstate(over="ignore"):
            for case in (*cases, *([several] if several and separable and varies else [])):
                shapes = _run(graph, case)
    except GraphError as error:
        raise BundleFileError(f"{path} is no graph that a bundle may hold: {error}; {FIX}") from error
    except (MemoryError, OSError) as error:
        if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
            raise MemoryShortError(f"there is not enough memory to read {path}: free some, then try again") from error
        raise BundleFileError(f"cannot read {path}: {error}; {FIX}") from error
    return Checked(shapes, separable)


def _check_parts(graph: GraphFile, path: Path) -> None:
    if graph.ir_version not in IR_VERSIONS:
        raise GraphError(f"IR version {graph.ir_version}, expected {IR_VERSIONS[0]} to {IR_VERSIONS[-1]}")
    if "" not in graph.opsets or any(version not in OPSETS.get(domain, ()) for domain, version in graph.opsets.items()):
        expected = ", ".join(f"{domain or 'ai.onnx'} {versions[0]}" for domain, versions in OPSETS.items())
        raise GraphError(f"operator sets {dict(graph.opsets)}, expected {expected}")
    if len(graph.nodes) > MAX_NODES:
        raise GraphError(f"{len(graph.nodes)} operators, expected at most {MAX_NODES}")
    beside = weights_file(path.with_name(_SOURCES.get(path.name, path.name)))
    size = beside.stat().st_size if beside.is_file() else 0
    for name, weight in graph.weights.items():
        if weight.external and (weight.external[0] != beside.name or sum(weight.external[1:]) > size):
            raise GraphError(
                f"weight {name!r} is at {weight.external[0]!r}, bytes {weight.external[1]} to "
                f"{sum(weight.external[1:])}; expected {beside.name!r}, which has {size}"
            )


def _run(graph: GraphFile, case: Case) -> Shapes:
    """Shapes of inputs and outputs in a run; what a value is last used by ends its life."""
    values = _given(graph, case)
    last = {name: place for place, node in enumerate(graph.nodes) for name in node.inputs}
    last |= dict.fromkeys(graph.outputs, len(graph.nodes))
    chunks = max(fed[0] for fed in case.feed.values() if isinstance(fed, tuple))
    max_work = chunks * (MAX_WORK + case.uses * sum(math.prod(weight.shape) for weight in graph.weights.values()))
    live = work = 0
    for place, node in enumerate(graph.nodes):
        try:
            given = [values[name] for name in node.inputs]
            outputs = outputs_of(node, given)
        except KeyError as error:
            raise GraphError(f"{node.operator} takes {error}, which nothing before it gives") from error
        except GraphError as error:
            raise GraphError(
                f"{node.operator} that gives {node.outputs[0] if node.outputs else None!r}: {error}"
            ) from None
        for name, value in zip(node.outputs, outputs, strict=True):
            if name in values or not name:
                raise GraphError(f"two values have the name {name!r}, or one has none")
            _check_described(name, graph.described.get(name), value)
            values[name] = value
            live += _bytes(value)
        work += work_of(node, given, outputs)
        if live > MAX_LIVE_BYTES or work > max_work:
            raise GraphError(
                f"{node.operator} that gives {node.outputs[0]!r} {outputs[0].shape} takes too much memory or time"
            )
        live -= sum(
            _bytes(values[name])
            for name in {*node.inputs, *node.outputs} - graph.weights.keys() - case.feed.keys()
            if last.get(name, place) == place
        )
    return _results(graph, case, values)


def _given(graph: GraphFile, case: Case) -> dict[str, Value]:
    """Inputs and weights by name."""
    if tuple(graph.inputs) != tuple(case.feed) or tuple(graph.outputs) != tuple(case.wanted):
        raise GraphError(
            f"it maps {', '.join(graph.inputs)} to {', '.join(graph.outputs)}, expected {', '.join(case.feed)} to "
            f"{', '.join(case.wanted)}"
        )
    values = {
        name: Value(weight.kind, weight.shape, weight.known, constant=True) for name, weight in graph.weights.items()
    }
    for name, fed in case.feed.items():
        stated = graph.inputs[name]
        if name in values:
            raise GraphError(f"two values have the name {name!r}")
        if isinstance(fed, np.ndarray):
            value = Value(INT64, fed.shape, fed)
        else:
            sizes = stated.shape if stated.shape is not None and len(stated.shape) == len(fed) else (0,) * len(fed)
            value = Value(
                FLOAT, tuple(int(own or 0) if size == -1 else size for size, own in zip(fed, sizes, strict=True))
            )
        _check_described(name, stated, value)
        if stated.shape is None or min(value.shape) < 1:
            raise GraphError(f"input {name!r} states the shape {stated.shape}, expected {fed}")
        values[name] = value
    return values


def _results(graph: GraphFile, case: Case, values: Mapping[str, Value]) -> Shapes:
    for name, wanted in case.wanted.items():
        got = values.get(name, Value(0, ()))
        same = len(got.shape) == len(wanted) and all(
            two in (one, -1) for one, two in zip(got.shape, wanted, strict=True)
        )
        if got.kind != FLOAT or not same:
            fed = ", ".join(f"{key} {value}" for key, value in case.feed.items())
            raise GraphError(f"from {fed} it gives {name} {got.shape} of type {got.kind}, expected float32 {wanted}")
        _check_described(name, graph.outputs[name], got)
    return {name: values[name].shape for name in (*case.feed, *case.wanted)}


def _check_described(name: str, stated: Described | None, value: Value) -> None:
    """What a graph says of a value must be what it is."""
    if stated is None or not stated.kind:
        return
    sizes = value.shape if stated.shape is None else stated.shape
    fits = len(sizes) == len(value.shape) and all(
        one in (two, None) for one, two in zip(sizes, value.shape, strict=True)
    )
    if stated.kind != value.kind or not fits:
        raise GraphError(
            f"{name!r} is said to be {stated.shape} of type {stated.kind}, is {value.shape} of {value.kind}"
        )


def _bytes(value: Value) -> int:
    return ITEM_BYTES[value.kind] * math.prod(value.shape)
