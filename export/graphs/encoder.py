"""The graphs with weights: patches of a few chunks by the encoder, audio embeddings by the projector.

torch's exporter writes them at opset 23, whose `Attention` operator ONNX Runtime runs fused. It sees zeros that
take no memory; the weights are put in one by one while the file is written, so that no more than one of them is
in memory at a time. Each graph is run with ONNX Runtime right after it was written and compared with the reference.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.reference.encoder import (
    ENCODER_PREFIX,
    PROJECTOR_PREFIX,
    load_projector,
    meta_encoder,
    meta_projector,
    stream_chunks,
)
from dasheng_edge.export.variants.modules import AudioProjector, ChunkedEncoder
from dasheng_edge.export.variants.variant import Feed
from dasheng_edge.runtime.bundle.bundle import EXTERNAL_BYTES, PAGE_BYTES, weights_file
from dasheng_edge.runtime.deviation import relative_rms
from dasheng_edge.runtime.errors import ExportError

from .attention_layout import join_heads
from .patch_matrix import multiply_patches
from .session import GraphReport, graph_bytes, graph_session

OPSET = 23  # the first with Attention
MAX_CHUNKS = 1 << 10  # what the exporter is told; what a run takes is bound by memory

Array: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Seam:
    """What a graph takes and gives: example inputs by name, their dynamic axes, and the output."""

    inputs: Mapping[str, Tensor]
    dynamic: Mapping[str, object]
    output: str
    output_axis: str


class _Chunks(nn.Module):
    """An encoder of chunks of one length; the exporter names a graph's inputs by the signature of `forward`."""

    def __init__(self, encoder: ChunkedEncoder, inputs: Sequence[str]) -> None:
        super().__init__()
        self.audio_encoder = encoder

        def forward(*values: Tensor) -> Tensor:
            return encoder.forward_chunk(dict(zip(inputs, values, strict=True)))

        parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in inputs]
        forward.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        self.forward = forward


class ExactProjector(nn.Module):
    """`AudioProjector` for a number of patches that is a multiple of 5, so that nothing is cut off."""

    def __init__(self, projector: AudioProjector) -> None:
        super().__init__()
        self.audio_projector = projector

    def forward(self, patches: Tensor) -> Tensor:
        """float32 [1, 5n, dim] -> float32 [1, n, llm_dim]."""
        joined = patches.reshape(1, -1, self.audio_projector.factor * patches.shape[-1])
        out: Tensor = self.audio_projector.net(joined)
        return out


def export_encoder(path: Path, merged: MergedTensors) -> GraphReport:
    """Write the encoder of some chunks: log_mel [chunks, n_mels, frames] -> patches [chunks, frames // 4, dim].

    It also takes valid_patches, int64 [chunks], or padded_patches of plain Dasheng, int64 [1]. With an acoustic branch
    it takes acoustic_mel [chunks, n_acoustic, frames] and kept_patches, int64 [chunks], too.

    Raises:
        ExportError: the exporter did not emit one `Attention` per block.
    """
    encoder, spec, variant = meta_encoder(merged), merged.checkpoint.front_end, merged.checkpoint.variant
    multiply_patches(encoder)
    chunk_axis = torch.export.Dim("chunks", min=1, max=MAX_CHUNKS)
    frames = torch.export.Dim("frames", min=spec.patch_frames, max=spec.chunk_frames)
    cases = variant.code.examples(spec)
    chunks = [{name: torch.from_numpy(case[name]) for name in variant.inputs} for case in cases]
    several = {name: len(value) > 1 for name, value in chunks[-1].items()}  # not the padding, which they share
    dynamic = {
        name: ({0: chunk_axis} if several[name] else {}) | ({2: frames} if value.ndim == 3 else {})
        for name, value in chunks[-1].items()
    }
    module = _Chunks(encoder, variant.inputs)
    model = _trace(module, _Seam(chunks[-1], dynamic, "patches", "patches"))
    fused = sum(node.op_type == "Attention" for node in model.graph)
    if fused != encoder.spec.depth:
        raise ExportError(
            f"the exporter emitted {fused} Attention nodes for {encoder.spec.depth} blocks; "
            "use the torch and onnxscript versions of constraints.txt"
        )
    join_heads(model, encoder.spec.num_heads)
    _save(model, path, merged, ENCODER_PREFIX)
    wanted = [patches.numpy() for patches in stream_chunks(merged, chunks)]
    return _compare(path, cases, wanted)


def export_projector(path: Path, merged: MergedTensors) -> GraphReport:
    """Write patches [1, 5n, dim] -> embeddings [1, n, llm_dim]."""
    factor, dim = merged.checkpoint.front_end.tokens_patches, merged.checkpoint.encoder.embed_dim
    # 5 * (a dimension of its own) tells the exporter that the patches are a multiple of 5.
    tokens = torch.export.Dim("tokens", min=1, max=1 << 20)
    example, dynamic = {"patches": torch.zeros(1, 3 * factor, dim)}, {"patches": {1: factor * tokens}}
    module = ExactProjector(meta_projector(merged))
    _save(_trace(module, _Seam(example, dynamic, "embeddings", "tokens")), path, merged, PROJECTOR_PREFIX)
    generator = np.random.default_rng(0)
    cases = [{"patches": generator.standard_normal((1, n * factor, dim), dtype=np.float32)} for n in (1, 2, 50, 252)]
    projector = load_projector(merged)
    wanted = [projector(torch.from_numpy(case["patches"])).numpy() for case in cases]
    return _compare(path, cases, wanted)


def _trace(module: nn.Module, seam: _Seam) -> ir.Model:
    """torch's exporter, without what it prints and what it notes about the machine it ran on.

    The module's weights become inputs of the graph, behind those of the seam. As initializers they would all be
    equal, and the optimizer would merge them into one and fold them into what follows.
    """
    state = module.state_dict()  # on the meta device
    zeros = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in state.items()}
    module.load_state_dict(zeros, assign=True)
    with _quiet():
        program = torch.onnx.export(
            module.eval().requires_grad_(requires_grad=False), tuple(seam.inputs.values()), dynamo=True,
            opset_version=OPSET, verbose=False, optimize=False, input_names=list(seam.inputs),
            output_names=[seam.output], dynamic_shapes=dict(seam.dynamic),
        )  # fmt: skip
        assert program is not None
        graph = program.model.graph
        for name in [name for name in graph.initializers if name in state]:
            value = graph.initializers.pop(name)
            value.const_value = None
            graph.inputs.append(value)
        program.optimize()
    _strip(program.model)
    result = graph.outputs[0]
    assert result.shape is not None
    result.shape = ir.Shape([result.shape[0], seam.output_axis, result.shape[2]])
    return program.model


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Silences the exporter's notices; its errors are exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip(model: ir.Model) -> None:
    """Remove stack traces and the like: they are most of a small file, and hold paths of this machine."""
    graph = model.graph
    parts: list[ir.Model | ir.Graph | ir.Node | ir.Value] = [model, graph, *graph.inputs, *graph.initializers.values()]
    for node in graph:
        parts += [node, *node.outputs]
    for part in parts:
        part.doc_string = None
        part.metadata_props.clear()


def _put_weights(graph: ir.Graph, merged: MergedTensors, prefix: str) -> None:
    """Turn the inputs that stand for weights into weights, read when the file is written.

    The exporter multiplies by transposed matrices; they are stored so.
    """
    weights = [value for value in graph.inputs if value.name and value.name.startswith(prefix)]
    assert {value.name for value in weights} == set(merged.names(prefix))
    for value in weights:
        assert value.name is not None
        graph.inputs.remove(value)
        for node, _ in tuple(value.uses()):
            if node.op_type == "Transpose":
                order, ending = node.attributes["perm"].as_ints(), "transposed"
                shape = [merged.shape(value.name)[axis] for axis in order]
                last = node
                if [use.node.op_type for use in node.outputs[0].uses()] == ["Reshape"]:  # of the patches' matrix
                    (last,), ending = [use.node for use in node.outputs[0].uses()], "matrix"
                    shape = [shape[0] * shape[1], shape[-1]]
                tensor = _lazy(merged, value.name, f"{value.name}.{ending}", order, shape)
                stored = ir.Value(name=tensor.name, shape=tensor.shape, type=value.type, const_value=tensor)
                last.outputs[0].replace_all_uses_with(stored)
                graph.remove([node] if last is node else [last, node], safe=True)
                graph.register_initializer(stored)
        if value.uses():
            shape = list(merged.shape(value.name))
            value.const_value = _lazy(merged, value.name, value.name, range(len(shape)), shape)
            graph.register_initializer(value)


def _lazy(merged: MergedTensors, source: str, name: str, axes: Sequence[int], sizes: Sequence[int]) -> ir.LazyTensor:
    """A weight with its axes in this order and then of these sizes; it is read each time that somebody looks at it."""

    def read() -> ir.TensorProtocol:
        values = merged.tensor(source).numpy().transpose(axes).reshape(sizes)
        return ir.Tensor(np.ascontiguousarray(values), name=name)

    return ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(sizes), name=name)


def _save(model: ir.Model, path: Path, merged: MergedTensors, prefix: str) -> None:
    """Write and check a graph; many weights are streamed to a file beside it."""
    _put_weights(model.graph, merged, prefix)
    model.producer_name, model.producer_version = "dasheng-edge", None
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    beside = weights_file(path).name if weights > EXTERNAL_BYTES else None
    ir.save(model, path, external_data=beside, alignment=PAGE_BYTES)
    onnx.checker.check_model(path)


def _compare(path: Path, cases: Sequence[Feed], wanted: Sequence[Array]) -> GraphReport:
    """Largest relative RMS difference over the cases; NaN where the graph yields one."""
    session = graph_session(path)
    errors = [relative_rms(session.run(None, case)[0], want) for case, want in zip(cases, wanted, strict=True)]
    return GraphReport(graph_bytes(path), float(np.max(errors)), len(cases))
