"""The first graph: waveform -> log-mel, and the acoustic mel where the encoder has a branch for it.

Written as ONNX text, since it is a dozen operators; float64 inside, like the reference. It is run with ONNX Runtime
right after it was written and compared with the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import torch
from onnx import numpy_helper
from torch import Tensor

from dasheng_edge.export.variants.spectrograms import AcousticMel, LogMel, mel_filterbank
from dasheng_edge.runtime.bundle.front_end_spec import AcousticSpec, FrontEndSpec
from dasheng_edge.runtime.deviation import max_difference

from .session import GraphReport, graph_session

# Power spectrum by STFT, mel filters, decibels, floor relative to the loudest bin (torchaudio's
# MelSpectrogram and AmplitudeToDB). Measured on two cores for 10 s of audio: 9 ms by the STFT operator, 7 ms by
# framing and a MatMul with the DFT matrix, which would need 2 MB of constants.
LOG_MEL_TEXT = """
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
"""
# The same with magnitudes and the natural logarithm, and without the floor that depends on the clip.
ACOUSTIC_MEL_TEXT = """
    acoustic_padded = Pad <mode = "reflect"> (precise, acoustic_pads)
    acoustic_spectrum = STFT <onesided = 1> (acoustic_padded, hop_length, acoustic_window, acoustic_n_fft)
    acoustic_squared = Mul (acoustic_spectrum, acoustic_spectrum)
    acoustic_power = ReduceSum <keepdims = 0> (acoustic_squared, last_axis)
    acoustic_magnitude = Sqrt (acoustic_power)
    acoustic_bands = MatMul (acoustic_magnitude, acoustic_filterbank)
    acoustic_audible = Max (acoustic_bands, acoustic_log_floor)
    acoustic_nepers = Log (acoustic_audible)
    acoustic_by_mel = Transpose <perm = [0, 2, 1]> (acoustic_nepers)
    acoustic_mel = Cast <to = 1> (acoustic_by_mel)
"""
GRAPH_TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
front_end (float[1, samples] waveform) => ({outputs}) {{
    precise = Cast <to = 11> (waveform)
{body}}}
"""

Constants = dict[str, npt.NDArray[np.float64] | npt.NDArray[np.int64]]


def export_front_end(path: Path, spec: FrontEndSpec) -> GraphReport:
    """Write waveform float32 [1, samples] -> log_mel float32 [1, n_mels, frames].

    With an acoustic branch there is a second output, acoustic_mel float32 [1, n_acoustic, frames].
    """
    outputs, body = f"float[1, {spec.n_mels}, frames] log_mel", LOG_MEL_TEXT
    constants = _log_mel_constants(spec)
    if spec.acoustic:
        outputs += f", float[1, {spec.acoustic.n_mels}, frames] acoustic_mel"
        body += ACOUSTIC_MEL_TEXT
        constants |= _acoustic_constants(spec.acoustic)
    model = onnx.parser.parse_model(GRAPH_TEXT.format(outputs=outputs, body=body))
    model.producer_name = "dasheng-edge"
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return _compare(path, spec)


def _compare(path: Path, spec: FrontEndSpec) -> GraphReport:
    """Largest differences over noise, silence, faint noise and a full-scale square wave of several lengths."""
    sources = [LogMel(spec), *([AcousticMel(spec.acoustic, spec.hop_length)] if spec.acoustic else [])]
    session, errors = graph_session(path), []
    for waveform in _cases(spec):
        results = session.run(None, {"waveform": waveform.numpy()})
        wanted = [source(waveform).numpy() for source in sources]
        errors.append([max_difference(got, want) for got, want in zip(results, wanted, strict=True)])
    worst = np.max(errors, axis=0)  # unlike max(), propagates NaN
    return GraphReport(path.stat().st_size, float(worst[0]), len(errors), float(worst[1]) if spec.acoustic else None)


def _cases(spec: FrontEndSpec) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for samples in (spec.shortest_samples, 16_000, 163_201):
        noise = torch.rand(1, samples, generator=generator) * 2 - 1
        yield from (noise, torch.zeros_like(noise), 1e-4 * noise, noise.sign())


def _log_mel_constants(spec: FrontEndSpec) -> Constants:
    return {
        "pads": np.array([0, spec.n_fft // 2, 0, spec.n_fft // 2]),
        "hop_length": np.array(spec.hop_length),
        "window": _window(spec),
        "n_fft": np.array(spec.n_fft),
        "last_axis": np.array([3]),
        "filterbank": mel_filterbank(spec).numpy(),
        "log_floor": np.array(spec.log_floor),
        "decibel_per_neper": np.array(10.0 / np.log(10.0)),  # of power
        "top_db": np.array(spec.top_db),
    }


def _acoustic_constants(spec: AcousticSpec) -> Constants:
    return {
        "acoustic_pads": np.array([0, spec.n_fft // 2, 0, spec.n_fft // 2]),
        "acoustic_window": _window(spec),
        "acoustic_n_fft": np.array(spec.n_fft),
        "acoustic_filterbank": mel_filterbank(spec).numpy(),
        "acoustic_log_floor": np.array(spec.log_floor),
    }


def _window(spec: FrontEndSpec | AcousticSpec) -> npt.NDArray[np.float64]:
    """Hann; a window shorter than the transform is centred in it."""
    window = torch.hann_window(spec.win_length, periodic=True, dtype=torch.float64).numpy()
    left = (spec.n_fft - spec.win_length) // 2
    return np.pad(window, (left, spec.n_fft - spec.win_length - left))
