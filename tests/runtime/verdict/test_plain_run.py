"""A graph run plainly, and its products held against NumPy's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from dasheng_edge.runtime.verdict.plain_run import plain_run
from tests.fixtures.onnx_bytes import field, graph, model, node, value, weight

Weights = dict[str, NDArray[Any]]
random = np.random.default_rng(0)


def integers() -> tuple[list[bytes], Weights]:
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        node("MatMulInteger", ["q", "w", "zero"], ["sums"]),
        node("Cast", ["sums"], ["y"], to=1),
    ]
    return nodes, {"w": random.integers(-127, 128, (64, 16), dtype=np.int8)}


def floats() -> tuple[list[bytes], Weights]:
    return [node("MatMul", ["x", "w"], ["y"])], {"w": random.normal(size=(64, 16)).astype(np.float32)}


def blocks(bits: int, size: int) -> tuple[list[bytes], Weights]:
    count, attributes = -(-64 // size), {"K": 64, "N": 16, "bits": bits, "block_size": size}
    zeros = random.integers(0, 256, 16 * -(-count * bits // 8)).astype(np.uint8)
    weights: Weights = {
        "w": random.integers(0, 256, (16, count, size * bits // 8)).astype(np.uint8),
        "scales": random.uniform(0.5, 1, 16 * count).astype(np.float32),
        "zeros": zeros,
    }
    return [node("MatMulNBits", ["x", *weights], ["y"], domain="com.microsoft", **attributes)], weights


CASES = [integers(), floats(), *(blocks(bits, size) for bits in (4, 8) for size in (16, 32, 64, 128))]
NAMES = ["int8", "fp32", *(f"{bits} bits, blocks of {size}" for bits in (4, 8) for size in (16, 32, 64, 128))]


def write(path: Path, nodes: list[bytes], weights: Weights) -> Path:
    x, y = value("x", "float32", ["rows", 64]), value("y", "float32", ["rows", 16])
    content = graph(nodes, [x], [y], *(weight(*one) for one in weights.items()))
    path.write_bytes(model(content, {"": 21, "com.microsoft": 1}))
    return path


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_products_are_those_of_numpy(case: tuple[list[bytes], Weights], rows: int, tmp_path: Path) -> None:
    path = write(tmp_path / "graph.onnx", *case)
    feed = {"x": random.normal(size=(rows, 64)).astype(np.float32)}
    run = plain_run(path, feed)
    assert run.wrong == ()
    assert list(run.outputs) == ["y"]
    (usual,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)
    np.testing.assert_allclose(run.outputs["y"], usual, rtol=0.1, atol=0.1 * np.abs(usual).max())


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_wrong_products_are_named(
    case: tuple[list[bytes], Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, weights = case
    path = write(tmp_path / "graph.onnx", *case)
    real = onnxruntime.InferenceSession

    class Wrong:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._real = real(*arguments, **options)
            self.get_outputs = self._real.get_outputs

        def run(self, names: Any, feed: Any) -> list[Any]:
            given = [one.name for one in self.get_outputs()]
            found = self._real.run(names, feed)
            return [
                one + (one.std() + 1).astype(one.dtype) if name in ("sums", "y") else one
                for name, one in zip(given, found, strict=True)
            ]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    run = plain_run(path, {"x": random.normal(size=(3, 64)).astype(np.float32)})
    (operator,) = run.wrong
    assert field(4, operator.rpartition(".")[2]) in b"".join(nodes)
    assert weights
