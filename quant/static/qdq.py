"""Static int8 by Hugging Face optimum: scales of activations are measured on audio, once, and are part of the graph.

The weight matrices of encoder and projector are quantized, as in our dynamic int8: symmetric, with a scale for each
output. What a tool chain sees are QuantizeLinear and DequantizeLinear around each product, from which QNN, TensorRT and
others take their own kernels. Attention's own products, norms and sums stay float.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.quant.encoder.graphs import load_graph, matrix_nodes, save_graph
from dasheng_edge.runtime.audio.onnx_session import load_onnxruntime
from dasheng_edge.runtime.bundle.bundle import EXTERNAL_BYTES, weights_file
from dasheng_edge.runtime.errors import MissingExtraError
from dasheng_edge.runtime.machine.installation import install_line

from .forms import StaticOptions
from .quiet import quiet

Row = Mapping[str, NDArray[Any]]
PERCENTILE = 99.999  # of the magnitudes that a scale covers
PERCENTILE_BINS, ENTROPY_BINS = 2048, 128


def check_optimum() -> None:
    """Whether optimum is there, before any work.

    Raises:
        MissingExtraError: it is not.
    """
    with quiet():
        try:
            import_module("optimum.onnxruntime")
        except ImportError as error:
            raise MissingExtraError(
                f"static int8 needs optimum-onnx, which is not installed ({error}); run "
                f"{install_line('quant', 'npu', 'cpu')}"
            ) from error


def quantize_static(source: Path, out: Path, rows: Iterable[Row], options: StaticOptions) -> int:
    """Write a graph of fixed shapes in static int8; bytes written.

    `rows` are what it is given, by input: optimum's calibrator adds the batch axis itself, so they come without.
    """
    load_onnxruntime()  # before optimum does, which leaves its telemetry on
    with quiet(), tempfile.TemporaryDirectory(prefix="optimum-", dir=out.parent) as work:
        optimum = import_module("optimum.onnxruntime")
        from onnxruntime.quantization import QuantFormat, QuantType

        large = sum(file.stat().st_size for file in (source, weights_file(source)) if file.exists()) > EXTERNAL_BYTES
        ranges = _ranges(source, rows, options, Path(work) / "augmented.onnx", large)
        gc.collect()  # the calibrator, and the graph that it ran
        symmetric = options.activations == "int8"
        settings = optimum.QuantizationConfig(
            is_static=True, format=QuantFormat.QDQ, per_channel=True, weights_dtype=QuantType.QInt8,
            activations_dtype=QuantType.QInt8 if symmetric else QuantType.QUInt8, activations_symmetric=symmetric,
            nodes_to_quantize=[node.name or "" for node in matrix_nodes(load_graph(source)).values()],
            operators_to_quantize=["MatMul"],
        )  # fmt: skip
        _quantizer(source).quantize(settings, work, "static", ranges, use_external_data_format=large)
        return save_graph(load_graph(Path(work) / f"{source.stem}_static.onnx"), out)


def _quantizer(source: Path) -> Any:
    """optimum's, without a model of transformers behind it."""
    from transformers import PretrainedConfig

    return import_module("optimum.onnxruntime").ORTQuantizer(source, PretrainedConfig())


def _ranges(source: Path, rows: Iterable[Row], options: StaticOptions, augmented: Path, large: bool) -> Any:
    """The range of each activation over the rows, as the method chooses it."""
    from onnxruntime.quantization import CalibrationMethod

    def measured(method: Any, **settings: float) -> Any:
        configuration = import_module("optimum.onnxruntime.configuration")
        return configuration.CalibrationConfig("audio", "", "", 0, method, **settings)

    config = {
        "minmax": measured(CalibrationMethod.MinMax, moving_average=False),
        "percentile": measured(CalibrationMethod.Percentile, num_bins=PERCENTILE_BINS, percentile=PERCENTILE),
        "entropy": measured(CalibrationMethod.Entropy, num_bins=ENTROPY_BINS, num_quantized_bins=ENTROPY_BINS),
    }[options.method]
    quantizer = _quantizer(source)
    for row in rows:  # one at a time: histograms are merged, where all activations at once would fill the memory
        quantizer.partial_fit(
            [row], config, augmented, ["MatMul"], use_external_data_format=large,
            force_symmetric_range=options.activations == "int8",
        )  # fmt: skip
        config = replace(config, method=None)  # goes on with the calibrator that is there
    return quantizer.compute_ranges()


def batchless(feed: Row) -> Row:
    """What a graph is given without the batch axis, which is 1."""
    return {name: np.asarray(values[0]) for name, values in feed.items()}
