"""The three graphs: waveform -> log-mel -> patches of one chunk -> audio embeddings.

Front end: written as ONNX text, since it is a dozen operators; float64 inside, like the reference.
Encoder and projector: torch's exporter at opset 23, whose `Attention` operator ONNX Runtime runs fused.
Each graph is run with ONNX Runtime right after it was written and compared with its source.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as ir
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from dasheng_edge.runtime.devices import load_onnxruntime
from dasheng_edge.runtime.errors import ExportError
from dasheng_edge.runtime.front_end import FrontEndSpec
from dasheng_edge.runtime.verify import largest_difference, relative_rms

from .adapter import MergedTensors
from .dasheng import AudioProjector, DashengEncoder, LogMel, mel_filterbank

OPSET = 23  # the first with Attention
# protobuf cannot hold more than 2 GiB; above this the weights go to a file beside the graph
EXTERNAL_BYTES = 1_500_000_000

Array: TypeAlias = npt.NDArray[np.float32]
Feed: TypeAlias = Mapping[str, npt.NDArray[np.float32] | npt.NDArray[np.int64]]

# Power spectrum by STFT, mel filters, decibels, floor relative to the loudest bin (torchaudio's
# MelSpectrogram and AmplitudeToDB). Measured on two cores for 10 s of audio: 9 ms by the STFT operator, 7 ms by
# framing and a MatMul with the DFT matrix, which would need 2 MB of constants.
FRONT_END_TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
front_end (float[1, samples] waveform) => (float[1, {mels}, frames] log_mel) {{
    precise = Cast <to = 11> (waveform)
    padded = Pad <mode = "reflect"> (precise, pads)
    spectrum = STFT <onesided = 1> (padded, hop_length, window, n_fft)
    squared = Mul (spectrum, spectrum)
    power = ReduceSum <keepdims = 0> (squared, last_axis)
    mel = MatMul (power, filterbank)
    audible = Max (mel, log_floor)
    nepers = Log (audible)
    decibel = Mul (nepers, decibel_per_neper)
    loudest = ReduceMax <keepdims = 1> (decibel)
    lowest = Sub (loudest, top_db)
    limited = Max (decibel, lowest)
    by_mel = Transpose <perm = [0, 2, 1]> (limited)
    log_mel = Cast <to = 1> (by_mel)
}}
"""


@dataclass(frozen=True)
class GraphReport:
    """A graph's largest error against its source: dB for the front end, relative RMS for the others."""

    bytes: int
    error: float
    cases: int


class ChunkEncoder(nn.Module):
    """`DashengEncoder.forward_chunk` under the name that the exporter calls."""

    def __init__(self, encoder: DashengEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, log_mel: Tensor, valid_patches: Tensor) -> Tensor:
        """float32 [1, n_mels, frames], int64 [1] -> float32 [1, frames // 4, dim]."""
        return self.encoder.forward_chunk(log_mel, valid_patches)


class ExactProjector(nn.Module):
    """`AudioProjector` for a number of patches that is a multiple of 5, so that nothing is cut off."""

    def __init__(self, projector: AudioProjector) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, patches: Tensor) -> Tensor:
        """float32 [1, 5n, dim] -> float32 [1, n, llm_dim]."""
        joined = patches.reshape(1, -1, self.projector.factor * patches.shape[-1])
        out: Tensor = self.projector.net(joined)
        return out


def load_encoder(merged: MergedTensors) -> DashengEncoder:
    """The reference encoder in float32 with the merged weights, ready for inference."""
    checkpoint = merged.checkpoint
    with torch.device("meta"):
        encoder = DashengEncoder(checkpoint.encoder, checkpoint.front_end)
    state = merged.state_dict("audio_encoder.")
    state["init_bn.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)  # used in training only
    encoder.load_state_dict(state, assign=True)
    return encoder.eval().requires_grad_(requires_grad=False)


def load_projector(merged: MergedTensors) -> AudioProjector:
    """The reference projector in float32 with the merged weights."""
    checkpoint = merged.checkpoint
    sizes = checkpoint.encoder.embed_dim, checkpoint.decoder.hidden_size, checkpoint.front_end.tokens_patches
    with torch.device("meta"):
        projector = AudioProjector(*sizes)
    projector.load_state_dict(merged.state_dict("audio_projector."), assign=True)
    return projector.eval().requires_grad_(requires_grad=False)


def export_front_end(path: Path, spec: FrontEndSpec) -> GraphReport:
    """Write waveform float32 [1, samples] -> log-mel float32 [1, n_mels, frames]; the error is in dB."""
    model = onnx.parser.parse_model(FRONT_END_TEXT.format(mels=spec.n_mels))
    model.producer_name = "dasheng-edge"
    for name, value in _front_end_constants(spec).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    reference, session = LogMel(spec), _session(path)
    generator = torch.Generator().manual_seed(0)
    errors = []
    for samples in (spec.min_samples, 16_000, 163_201):
        noise = torch.rand(1, samples, generator=generator) * 2 - 1
        for waveform in (noise, torch.zeros_like(noise), 1e-4 * noise, noise.sign()):
            got = session.run(None, {"waveform": waveform.numpy()})[0]
            errors.append(largest_difference(got, reference(waveform).numpy()))
    return GraphReport(_bytes(path), float(np.max(errors)), len(errors))


def export_encoder(path: Path, encoder: DashengEncoder) -> GraphReport:
    """Write log-mel [1, n_mels, frames] and valid_patches int64 [1] -> patches [1, frames // 4, dim].

    Raises:
        ExportError: the exporter did not emit one `Attention` per block.
    """
    spec = encoder.front_end
    inputs = {
        "log_mel": torch.zeros(1, spec.n_mels, spec.chunk_frames // 2),
        "valid_patches": torch.tensor([spec.chunk_patches // 4]),
    }
    frames = torch.export.Dim("frames", min=spec.patch_frames, max=spec.chunk_frames)
    dynamic: dict[str, dict[int, object]] = {"log_mel": {2: frames}, "valid_patches": {}}
    model = _trace(ChunkEncoder(encoder), inputs, dynamic, "patches", "patches")
    fused = sum(node.op_type == "Attention" for node in model.graph)
    if fused != encoder.spec.depth:
        raise ExportError(
            f"the exporter emitted {fused} Attention nodes for {encoder.spec.depth} blocks; "
            "use the torch and onnxscript versions of constraints.txt"
        )
    cases = _chunk_cases(spec)
    wanted = [
        encoder.forward_chunk(torch.from_numpy(case["log_mel"]), torch.from_numpy(case["valid_patches"])).numpy()
        for case in cases
    ]
    _save(model, path)
    return _compare(path, cases, wanted)


def export_projector(path: Path, projector: AudioProjector, audio_dim: int) -> GraphReport:
    """Write patches [1, 5n, dim] -> embeddings [1, n, llm_dim]."""
    factor = projector.factor
    # 5 * (a dimension of its own) tells the exporter that the patches are a multiple of 5.
    tokens = torch.export.Dim("tokens", min=1, max=1 << 20)
    model = _trace(
        ExactProjector(projector), {"patches": torch.zeros(1, 3 * factor, audio_dim)},
        {"patches": {1: factor * tokens}}, "embeddings", "tokens",
    )  # fmt: skip
    generator = np.random.default_rng(0)
    cases = [
        {"patches": generator.standard_normal((1, n * factor, audio_dim), dtype=np.float32)} for n in (1, 2, 50, 252)
    ]
    wanted = [projector(torch.from_numpy(case["patches"])).numpy() for case in cases]
    _save(model, path)
    return _compare(path, cases, wanted)


def _front_end_constants(spec: FrontEndSpec) -> dict[str, npt.NDArray[np.float64] | npt.NDArray[np.int64]]:
    window = torch.hann_window(spec.win_length, periodic=True, dtype=torch.float64).numpy()
    left = (spec.n_fft - spec.win_length) // 2  # a window shorter than the transform is centred in it
    window = np.pad(window, (left, spec.n_fft - spec.win_length - left))
    return {
        "pads": np.array([0, spec.n_fft // 2, 0, spec.n_fft // 2]),
        "hop_length": np.array(spec.hop_length),
        "window": window,
        "n_fft": np.array(spec.n_fft),
        "last_axis": np.array([3]),
        "filterbank": mel_filterbank(spec).numpy(),
        "log_floor": np.array(spec.log_floor),
        "decibel_per_neper": np.array(10.0 / np.log(10.0)),  # of power
        "top_db": np.array(spec.top_db),
    }


def _chunk_cases(spec: FrontEndSpec) -> list[Feed]:
    """Chunks that catch mistakes: one patch, ragged ends, last patch no key, no key at all."""
    full = spec.chunk_patches
    sizes = [(4, 1), (4, 0), (7, 1), (12, 3), (20, 4), (400, 100), (1001, 250), (1008, full - 1), (1008, full)]
    generator = np.random.default_rng(0)
    cases: list[Feed] = []
    for frames, valid in sizes:
        log_mel = generator.normal(-40, 20, (1, spec.n_mels, frames)).clip(-100, 40).astype(np.float32)
        cases.append({"log_mel": log_mel, "valid_patches": np.array([valid])})
    return cases


def _trace(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    dynamic: Mapping[str, Mapping[int, object]],
    output: str,
    output_axis: str,
) -> ir.Model:
    """torch's exporter, without what it prints and what it notes about the machine it ran on."""
    with _quiet():
        program = torch.onnx.export(
            module.eval(), tuple(inputs.values()), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=list(inputs), output_names=[output], dynamic_shapes=dict(dynamic),
        )  # fmt: skip
    assert program is not None
    model = program.model
    _strip(model)
    result = model.graph.outputs[0]
    assert result.shape is not None
    result.shape = ir.Shape([result.shape[0], output_axis, result.shape[2]])
    return model


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


def _save(model: ir.Model, path: Path) -> None:
    """Write and check a graph; large weights are streamed to `<name>.data` beside it."""
    model.producer_name, model.producer_version = "dasheng-edge", None
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, path, external_data=f"{path.name}.data" if weights > EXTERNAL_BYTES else None)
    onnx.checker.check_model(path)


def _session(path: Path) -> Any:
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _compare(path: Path, cases: Sequence[Feed], wanted: Sequence[Array]) -> GraphReport:
    """Largest relative RMS difference over the cases; NaN where the graph yields one."""
    session = _session(path)
    errors = [relative_rms(session.run(None, case)[0], want) for case, want in zip(cases, wanted, strict=True)]
    return GraphReport(_bytes(path), float(np.max(errors)), len(cases))


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
