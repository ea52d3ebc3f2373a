"""Encoder and projector as a chain of small graphs, each of which can be run alone and in another precision.

The stages are what comes before the first block, the blocks, what comes behind the last, and the projector. The noise
that a quantized block adds is measured at the output of the chain by running that block and the float32 ones behind
it: a fraction of the model, instead of writing, loading and running all of it for each thing that is tried.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.encoder import chunk_feeds
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.audio.onnx_session import load_onnxruntime
from dasheng_edge.runtime.bundle.bundle import ENCODER, PROJECTOR, Bundle
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.deviation import Deviation

from .graphs import load_graph, matrix_nodes

Array: TypeAlias = NDArray[np.float32]
Feed: TypeAlias = Mapping[str, NDArray[Any]]
Change: TypeAlias = Callable[[ir.Model], None]
# Of the clips that stages are measured on: half an encoder of 630 M takes 1.5 s of two cores for it.
MAX_AUDIO_S = 30.0
LARGE_BYTES = 1 << 20  # of a weight that is not worth a copy
_BLOCK = re.compile(r"(.*\.blocks\.\d+)\..*")


@dataclass(frozen=True)
class Stage:
    """A part of a graph, from some of its values to another, by their names; `matrices` lie between."""

    graph: str
    inputs: tuple[str, ...]
    output: str
    matrices: tuple[str, ...]


class Chain:
    """The stages of a bundle's float32 encoder and projector, and what they make of some chunks of the clips."""

    def __init__(self, source: Bundle, clips: Sequence[Features], threads: int) -> None:
        names = [name for name in (ENCODER, PROJECTOR) if name in source.manifest.files]
        self._spec, self._threads = source.manifest.front_end, threads
        self._graphs = {name: load_graph(source.path(name)) for name in names}
        self.stages = _stages(self._graphs)
        self._sessions = [_Session(self.model(stage), threads, mapped=True) for stage in self.stages]
        self._feeds = _spread(self._spec, clips)
        # What enters each stage, and at the end what leaves the last, for each chunk.
        self._streams: list[list[Array]] = [[] for _ in range(len(self.stages) + 1)]
        for feed in self._feeds:
            self._follow(feed, feed["log_mel"])

    def _follow(self, feed: Feed, stream: Array) -> None:
        self._streams[0].append(stream)
        for index, session in enumerate(self._sessions):
            stream = self._trimmed(index, session.run(self._given(index, feed, stream))[0])
            self._streams[index + 1].append(stream)

    def model(self, stage: Stage, extra: Sequence[str] = ()) -> ir.Model:
        """The graph of a stage, its weights those of the source; `extra` are further outputs by name."""
        whole = self._graphs[stage.graph]
        graph = ir.convenience.extract(whole.graph, stage.inputs, (stage.output, *extra))
        return ir.Model(graph, ir_version=whole.ir_version)

    def values(self, index: int, names: Sequence[str]) -> list[Array]:
        """Values inside a stage, by name: float32 [rows, ...] of all chunks together."""
        session = _Session(self.model(self.stages[index], names), self._threads, mapped=True)
        runs = [session.run(self._given(index, *pair))[1:] for pair in self._inputs(index)]
        return [np.concatenate([one[0] for one in values]) for values in zip(*runs, strict=True)]

    def noise(self, index: int, change: Change, *, at_end: bool) -> float:
        """Share of the power that differs after `change` to a stage's graph: behind it, or at the end of the chain."""
        model = self.model(self.stages[index])
        change(model)
        session = _Session(model, self._threads, mapped=False)
        last = len(self.stages) if at_end else index + 1
        deviation = Deviation()
        for place, (feed, stream) in enumerate(self._inputs(index)):
            got = self._trimmed(index, session.run(self._given(index, feed, stream))[0])
            for later in range(index + 1, last):
                got = self._trimmed(later, self._sessions[later].run(self._given(later, feed, got))[0])
            deviation.add(got, self._streams[last][place])
        return deviation.noise_share

    def _inputs(self, index: int) -> list[tuple[Feed, Array]]:
        return list(zip(self._feeds, self._streams[index], strict=True))

    def _given(self, index: int, feed: Feed, stream: Array) -> Feed:
        return {**feed, self.stages[index].inputs[-1]: stream} if index else feed

    def _trimmed(self, index: int, output: Array) -> Array:
        """The projector takes whole tokens; of a chunk, what fills none is left out here."""
        if index + 1 < len(self.stages) and self.stages[index + 1].graph == PROJECTOR:
            size = output.shape[1] // self._spec.tokens_patches * self._spec.tokens_patches
            output = np.ascontiguousarray(output[:, :size])
        return output


class _Session:
    """A stage in ONNX Runtime.

    `mapped` leaves large weights in the mapped file of the source: they become inputs of the graph. As weights of it,
    ONNX Runtime would copy them into its own order: 1.2 times as fast, and as much memory as there are weights.
    """

    def __init__(self, model: ir.Model, threads: int, *, mapped: bool) -> None:
        onnxruntime = load_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # many are open at a time
        self._weights: dict[str, Any] = {}  # OrtValues, which do not copy
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        for name, value in list(model.graph.initializers.items()):
            tensor = value.const_value
            assert tensor is not None
            if mapped and tensor.nbytes > LARGE_BYTES:
                self._weights[name] = self._value(tensor.numpy())
                del model.graph.initializers[name]
                model.graph.inputs.append(value)
            else:
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
        content = ir.to_proto(model).SerializeToString()
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._session.get_inputs() if value.name not in self._weights]

    def run(self, feed: Feed) -> list[Array]:
        """The outputs for one chunk; what else is in `feed` is not used."""
        given = {name: self._value(feed[name]) for name in self._inputs}
        outputs = self._session.run_with_ort_values(None, given | self._weights)
        return [output.numpy() for output in outputs]


def group_of(matrix: str) -> str:
    """What is decided together: the matrices of a block of the encoder, or those of the projector."""
    block = _BLOCK.fullmatch(matrix)
    return block[1] if block else matrix.rsplit(".", 1)[0]


def groups_of(matrices: Iterable[str]) -> dict[str, list[str]]:
    """The matrices of each group."""
    groups: dict[str, list[str]] = {}
    for matrix in matrices:
        groups.setdefault(group_of(matrix), []).append(matrix)
    return groups


def _stages(graphs: Mapping[str, ir.Model]) -> tuple[Stage, ...]:
    """An encoder is cut where the residual stream enters a block; its stream is the last input of each stage."""
    encoder = graphs[ENCODER]
    nodes = matrix_nodes(encoder)
    blocks = groups_of(nodes)
    matrices = [tuple(names) for names in blocks.values()]
    last = nodes[matrices[-1][-1]]  # fc2, then its bias, then the sum with the stream
    ends = [_name(_before(_before(nodes[f"{block}.attn.qkv"]))) for block in blocks]
    ends.append(_name(_behind(_behind(last)).outputs[0]))
    given = tuple(_name(value) for value in encoder.graph.inputs)
    stages = [Stage(ENCODER, given, ends[0], ())]
    for start, end, names in zip(ends, ends[1:], matrices, strict=False):
        stages.append(Stage(ENCODER, (*given, start), end, names))
    stages.append(Stage(ENCODER, (*given, ends[-1]), _name(encoder.graph.outputs[0]), ()))
    if PROJECTOR in graphs:
        names = tuple(matrix_nodes(graphs[PROJECTOR]))
        stages.append(Stage(PROJECTOR, ("patches",), _name(graphs[PROJECTOR].graph.outputs[0]), names))
    return tuple(stages)


def _before(node: ir.Node | ir.Value) -> ir.Value:
    """The first input of a node, or of what gives a value."""
    producer = node if isinstance(node, ir.Node) else node.producer()
    assert producer is not None
    value = producer.inputs[0]
    assert value is not None
    return value


def _behind(node: ir.Node) -> ir.Node:
    ((user, _),) = node.outputs[0].uses()
    return user


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name


def _spread(spec: FrontEndSpec, clips: Sequence[Features]) -> list[Feed]:
    """Chunks from all over the clips, together about `MAX_AUDIO_S` long, each of at least one audio token."""
    feeds = [feed for clip in clips for feed in chunk_feeds(spec, clip)]
    chosen: list[Feed] = []
    left = MAX_AUDIO_S
    for place in np.random.default_rng(0).permutation(len(feeds)):
        frames = feeds[place]["log_mel"].shape[-1]
        if left > 0 and frames >= spec.tokens_patches * spec.patch_frames:
            chosen.append(feeds[place])
            left -= frames * spec.hop_length / spec.sample_rate_hz
    return chosen
