"""Graphs that ONNX Runtime does not survive, or that break the counting law, are refused before it sees them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dasheng_edge.runtime.audio.encoder import Encoder, Projector
from dasheng_edge.runtime.audio.front_end import FrontEndGraph
from dasheng_edge.runtime.bundle.bundle import ENCODER, FRONT_END, PROJECTOR
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.bundle.graph_check import Case, check_graph
from dasheng_edge.runtime.errors import BundleFileError, DeviceError, MemoryShortError
from tests.fixtures.onnx_bytes import external, field, graph, model, node, value, weight, whole_numbers

WIDTH = 4
CASES = [Case({"patches": (1, 5 * n, -1)}, {"embeddings": (1, n, -1)}) for n in (1, 50)]
TAKES, GIVES = [value("patches", "float32", [1, "n", WIDTH])], [value("embeddings", "float32", [1, "m", 20])]
JOIN = [node("Reshape", ["patches", "joined"], ["embeddings"], allowzero=1)]
JOINED = whole_numbers("joined", 1, -1, 20)
MATRIX = weight("matrix", np.ones((WIDTH, WIDTH), np.float32))
LOG = node("Log", ["patches"], ["x"])


def ending(*nodes: bytes, weights: tuple[bytes, ...] = ()) -> bytes:
    """A projector that joins rows, and something else before it that gives `x`."""
    last = node("Reshape", ["x", "joined"], ["embeddings"])
    return model(graph([*nodes, last], TAKES, GIVES, JOINED, *weights))


def projector(takes: list[bytes], gives: list[bytes] | None = None) -> bytes:
    return model(graph(JOIN, takes, gives or GIVES, JOINED))


def beside(*nodes: bytes, weights: tuple[bytes, ...] = (), opsets: dict[str, int] | None = None) -> bytes:
    """A projector that joins rows, and nodes whose results nobody uses."""
    return model(graph([*nodes, *JOIN], TAKES, GIVES, JOINED, *weights), opsets or {"": 23})


def one(operator: str, *numbers: int, **attributes: object) -> bytes:
    return beside(
        node(operator, ["patches", "numbers"], ["x"], **attributes), weights=(whole_numbers("numbers", *numbers),)
    )


def stored(*fields: bytes) -> bytes:
    return beside(weights=(b"".join(fields),))


def elsewhere(location: str, offset: int, length: int) -> bytes:
    return beside(weights=(external("w", [1], location=location, offset=offset, length=length),))


def divided(by: str) -> bytes:
    nodes = node("Shape", ["patches"], ["sizes"]), node("Div", ["sizes", by], ["x"])
    return beside(*nodes, weights=(whole_numbers("zero", 0), whole_numbers("minus", -1)))


def endless(times: int) -> bytes:
    """Matrices that are multiplied again and again."""
    nodes = [node("MatMul", [f"x{i}", "x0"], [f"x{i + 1}"]) for i in range(times)]
    start = node("Expand", ["one", "sizes"], ["x0"])
    return beside(
        start, *nodes, weights=(weight("one", np.ones((1, 1), np.float32)), whole_numbers("sizes", 2048, 2048))
    )


REFUSED = {
    "no graph": (b"not a graph", "no ONNX file|another type|field"),
    "nothing": (b"", "it is empty"),
    "zeros": (b"\0" * 99, "field 0"),
    "one that breaks off": (beside()[:-3], "breaks off"),
    "functions": (beside() + field(25, b""), "a model holds functions"),
    "training": (beside() + field(20, b""), "a model holds training information"),
    "an unknown field": (beside() + field(99, 1), "a model holds field 99"),
    "two graphs": (beside() + field(7, b""), "states its graph twice"),
    "sparse weights": (model(graph(JOIN, TAKES, GIVES, JOINED) + field(15, b"")), "a graph holds sparse weights"),
    "a loop": (beside(node("Loop", ["patches"], ["x"])), "operator 'Loop', which no graph of a bundle has"),
    "a subgraph": (beside(node("Add", ["patches", "patches"], ["x"]) + field(5, field(6, b""))), "holds a subgraph"),
    "an operator of others": (beside(node("A", ["patches"], ["x"], domain="e")), "operator 'e.A'"),
    "an opset of others": (beside(opsets={"": 23, "e": 1}), "operator sets .*'e': 1"),
    "an old opset": (beside(opsets={"": 22}), "expected ai.onnx 23, com.microsoft 1"),
    "no opset": (beside(opsets={"com.microsoft": 1}), "operator sets"),
    "another IR": (model(graph(JOIN, TAKES, GIVES, JOINED), ir_version=99), "IR version 99, expected 8 to 11"),
    "values of no node": (ending(node("Not", ["nothing"], ["x"])), "takes 'nothing', which nothing before it gives"),
    "a value given twice": (beside(LOG, LOG), "the name 'x'"),
    "a weight that is an input": (beside(weights=(weight("patches", np.ones(1, np.float32)),)), "two values"),
    "two weights of a name": (beside(weights=(MATRIX, MATRIX)), "two of one name: weight"),
    "an attribute of two types": (beside(LOG + field(5, field(1, "a") + field(20, 2))), "'a'"),
    "an attribute unheard of": (beside(node("Log", ["patches"], ["x"], base=2)), "attribute base = 2"),
    "an attribute that is missing": (beside(node("Transpose", ["patches"], ["x"])), "attributes perm are missing"),
    "inputs that are missing": (beside(node("Add", ["patches"], ["x"])), "1 inputs, expected 2 to 2"),
    "outputs too many": (beside(node("Log", ["patches"], ["x", "y"])), "2 outputs, expected 1"),
    "a Split into fewer than it gives": (
        beside(node("Split", ["patches"], ["x", "y"], axis=-1, num_outputs=1)), r"split into 1 of 2",
    ),
    "a Split into none": (beside(node("Split", ["patches"], [], axis=-1, num_outputs=0)), "split into 0 of 0"),
    "a sum over no axis": (one("ReduceSum"), "an empty list of axes"),
    "no axis taken away": (one("Squeeze"), "an empty list of axes"),
    "texts": (beside(node("Cast", ["patches"], ["x"], to=8)), "attribute to = 8"),
    "whole numbers over zero": (divided("zero"), "something else than positive constants"),
    "the smallest number over -1": (divided("minus"), "something else than positive constants"),
    "whole numbers over sizes": (divided("sizes"), "something else than positive constants"),
    "axes beyond": (one("Unsqueeze", 9), "axis 9 of 4"),
    "an axis twice": (one("Unsqueeze", 0, 0), "an axis is named twice"),
    "a Transpose": (beside(node("Transpose", ["patches"], ["x"], perm=(0, 1, 1))), "perm"),
    "a Reshape": (one("Reshape", 7, 7), "cannot become"),
    "a Reshape of no size": (one("Reshape", -1, 0, allowzero=1), "cannot become"),
    "a Pad": (one("Pad", 0, 0, 0, 0, 0, -9, mode="constant"), "pads"),
    "a reflection of more than there is": (one("Pad", 0, 0, 9, 0, 0, 0, mode="reflect"), "pads"),
    "a Pad of terabytes": (one("Pad", 0, 1 << 40, 0, 0, 0, 0, mode="constant"), "too much memory or time"),
    "an Expand to terabytes": (one("Expand", 1 << 20, 1, 5, WIDTH), "do not go together|too much memory"),
    "a Gather beyond": (one("Gather", 9, axis=2), "takes places beyond 4"),
    "products without end": (endless(40), "too much memory or time"),
    "a product of other sizes": (beside(node("MatMul", ["patches", "patches"], ["x"])), "cannot be multiplied"),
    "more rows than patches": (
        model(graph([node("Identity", ["patches"], ["embeddings"])], TAKES, GIVES)), "operator 'Identity'",
    ),
    "no rows": (
        model(graph([node("Expand", ["w", "s"], ["embeddings"])], TAKES, [value("embeddings", "float32", [1, "m", 4])],
                    weight("w", np.ones((1, 1, 1), np.float32)), whole_numbers("s", 1, 0, 4))),
        r"gives embeddings \(1, 0, 4\) .*, expected float32 \(1, 1, -1\)",
    ),
    "a scalar": (
        model(graph([node("ReduceSum", ["patches", "a"], ["embeddings"], keepdims=0)], TAKES, GIVES,
                    whole_numbers("a", 0, 1, 2))),
        r"gives embeddings \(\)",
    ),
    "another name": (projector(TAKES, [value("rows", "float32", [1])]), "it maps patches to rows, expected"),
    "another type": (projector([value("patches", "float64", [1, "n", 4])]), "'patches' is said"),
    "another rank": (projector([value("patches", "float32", ["n", 4])]), "'patches' is said"),
    "a width that varies": (projector([value("patches", "float32", [1, "n", "w"])]), "input"),
    "another output": (projector(TAKES, [value("embeddings", "float32", [1, 2, 3])]), "is said to be"),
    "weights of fewer bytes": (stored(field(1, 9), field(2, 1), field(8, "w"), field(9, b"1234")), "expected 36"),
    "weights of terabytes": (stored(field(1, 1 << 40), field(2, 1), field(8, "w"), field(9, b"1234")), "expected 4398"),
    "weights of a negative size": (stored(field(1, -4), field(2, 1), field(8, "w"), field(9, b"")), "shape"),
    "weights that are texts": (stored(field(1, 1), field(2, 8), field(8, "w"), field(9, b"1")), "type 8"),
    "weights in no place": (stored(field(1, 1), field(2, 1), field(8, "w")), "in no place, or in two"),
    "weights in fields of their own": (stored(field(1, 1), field(2, 1), field(4, 1.0), field(8, "w")), "field 4"),
    "weights elsewhere": (elsewhere("/etc/passwd", 0, 4), "expected 'p.onnx.data'"),
    "weights above": (elsewhere("../p.onnx.data", 0, 4), "is at"),
    "weights behind the end": (elsewhere("p.onnx.data", 99, 4), "which has 8"),
    "weights before the start": (elsewhere("p.onnx.data", -4, 4), "states"),
    "weights of another length": (elsewhere("p.onnx.data", 0, 8), "expected 4"),
}  # fmt: skip


def checked(folder: Path, content: bytes) -> dict[str, tuple[int, ...]]:
    path = folder / "p.onnx"
    path.write_bytes(content)
    return dict(check_graph(path, CASES).shapes)


@pytest.mark.parametrize("name", REFUSED)
def test_graphs_that_are_refused(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    (tmp_path / "p.onnx.data").write_bytes(bytes(8))
    with pytest.raises(BundleFileError, match=rf"p\.onnx is no graph that a bundle may hold: .*({message})"):
        checked(tmp_path, content)


def test_graphs_that_are_taken(tmp_path: Path) -> None:
    shapes = {"patches": (1, 250, WIDTH), "embeddings": (1, 50, 20)}
    (tmp_path / "p.onnx.data").write_bytes(bytes(80))
    assert checked(tmp_path, beside()) == shapes
    weights = MATRIX, external("w", [4, 4], location="p.onnx.data", offset=16, length=64)
    product = node("MatMul", ["patches", "matrix"], ["y"]), node("MatMul", ["y", "w"], ["x"])
    assert checked(tmp_path, ending(*product, weights=weights)) == shapes
    described = field(13, value("x", "float32", [1, "rows", WIDTH])) + field(13, field(1, "nobody"))
    assert (
        checked(
            tmp_path,
            model(
                graph([*product, node("Reshape", ["x", "joined"], ["embeddings"])], TAKES, GIVES, JOINED, *weights)
                + described
            ),
        )
        == shapes
    )


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleFileError, match=r"cannot read .*No such file"):
        check_graph(tmp_path / "p.onnx", CASES)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_memory_that_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    from dasheng_edge.runtime.bundle import graph_check

    def short(_: Path) -> None:
        raise error

    monkeypatch.setattr(graph_check, "read_graph_file", short)
    with pytest.raises(MemoryShortError, match="not enough memory to read"):
        check_graph(tmp_path / "p.onnx", CASES)


def test_many_fields_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dasheng_edge.runtime.bundle import graph_file

    monkeypatch.setattr(graph_file, "MAX_FIELDS", 1000)
    with pytest.raises(BundleFileError, match="more than 1000 fields"):
        checked(tmp_path, beside() + field(14, b"") * 2000)
    with pytest.raises(BundleFileError, match="a name has 2000 bytes"):
        checked(tmp_path, beside(node("L" * 2000, ["patches"], ["x"])))


OPENERS: dict[str, Callable[[Path], object]] = {
    FRONT_END: lambda path: FrontEndGraph(path, FrontEndSpec()),
    ENCODER: lambda path: Encoder(path, FrontEndSpec()),
    PROJECTOR: lambda path: Projector(path, FrontEndSpec()),
}


@pytest.mark.parametrize("name", OPENERS)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_changed_is_opened_or_refused(
    tiny_bundle: Path, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    content = bytearray((tiny_bundle / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1) | st.integers(-3000, 0).map(lambda at: at + len(content) - 1))
    kind = data.draw(st.sampled_from(["set", "cut", "drop", "insert"]))
    size = data.draw(st.integers(1, 40))
    if kind == "set":
        content[place] = data.draw(st.integers(0, 255))
    elif kind == "cut":
        del content[place:]
    elif kind == "drop":
        del content[place : place + size]
    else:
        content[place:place] = data.draw(st.binary(min_size=size, max_size=size))
    path = tmp_path / name
    path.write_bytes(content)
    try:
        OPENERS[name](path)
    except (BundleFileError, DeviceError):
        return


def test_weights_are_not_read(tmp_path: Path) -> None:
    """A graph that holds 64 GiB, nearly all of it a hole of the file system, takes no longer than a small one."""
    size = 64 << 30
    head = field(1, size // 4) + field(2, 1) + field(8, "w") + b"\x4a" + _varint(size)  # field 9, as long as it says
    content = beside()
    start = content.index(b"\x3a")  # of the graph, behind IR version and opsets
    inner = graph(JOIN, TAKES, GIVES, JOINED) + b"\x2a" + _varint(len(head) + size) + head
    path = tmp_path / "p.onnx"
    with path.open("wb") as file:
        file.write(content[:start] + b"\x3a" + _varint(len(inner) + size) + inner)
        file.truncate(file.tell() + size)
    began = perf_counter()
    assert check_graph(path, CASES).shapes["embeddings"] == (1, 50, 20)
    assert perf_counter() - began < 1


def _varint(number: int) -> bytes:
    return field(0, number)[1:]
