"""Encoder and projector of a bundle in another precision, with the loss measured at the audio embeddings."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dasheng_edge.runtime.audio.encoder import Encoder, Projector
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.bundle.bundle import CUDA_GRAPHS, ENCODER, PROJECTOR, Bundle
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec
from dasheng_edge.runtime.deviation import Deviation
from dasheng_edge.runtime.errors import QuantizeError
from dasheng_edge.runtime.progress import Advance, no_advance

from .activations import check_float16
from .graphs import load_graph, matrix_nodes, save_graph, to_cuda, weight_of
from .plan import STEPS, Plan, Planner, choose
from .precisions import PRECISIONS, EncoderPrecision, MatrixPrecision
from .stages import Chain, groups_of

Array = NDArray[np.float32]
GRAPHS = (ENCODER, PROJECTOR)


@dataclass(frozen=True)
class EncoderOptions:
    """What the encoder is made in.

    `min_snr_db` is what `mixed` keeps at the embeddings. `smooth` looks for smoothing scales, which takes clips like
    those that the encoder will hear.
    """

    precision: EncoderPrecision
    min_snr_db: float = 30.0
    smooth: bool = False

    @property
    def limit_snr_db(self) -> float | None:
        """SNR of the embeddings below which something is wrong, or less than was asked for; None: float32."""
        return self.min_snr_db if self.precision == "mixed" else PRECISIONS[self.precision].min_snr_db


@dataclass(frozen=True)
class EncoderReport:
    """What was written, and how far it is from its source."""

    bytes: int
    source_bytes: int
    snr_db: float | None  # of the embeddings, or of the patches without a projector; None: no difference
    matrices: dict[str, MatrixPrecision]
    smoothed: dict[str, float]  # matrix -> exponent
    largest_activation: float | None = None  # on the clips, where graphs multiply in float16


@dataclass(frozen=True)
class _Source:
    """The graphs of a bundle and what they make of the clips."""

    bundle: Bundle
    clips: Sequence[Features]
    threads: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in GRAPHS if name in self.bundle.manifest.files)

    @property
    def bytes(self) -> int:
        files = self.bundle.manifest.files
        return sum(facts.bytes for file, facts in files.items() if file.startswith(self.names))

    def outputs(self, place: Callable[[str], Path]) -> Iterator[Array]:
        """Embeddings, or patches, of each clip by the graphs in a folder."""
        return clip_outputs(self.bundle.manifest.front_end, place, self.clips, self.threads, self.names)

    def write(self, place: Callable[[str], Path], plan: Plan, *, beside: bool = False) -> int:
        """Write all graphs with the matrices as planned; bytes written."""
        size = 0
        for name in self.names:
            model = load_graph(self.bundle.path(name))
            plan.apply(model)
            size += save_graph(model, place(name), beside=beside)
        return size

    def matrices(self) -> dict[str, int]:
        """Values of each matrix, by its name."""
        graphs = (load_graph(self.bundle.path(name)) for name in self.names)
        return {matrix: weight_of(node)[1].size for graph in graphs for matrix, node in matrix_nodes(graph).items()}


def clip_outputs(
    spec: FrontEndSpec, place: Callable[[str], Path], clips: Sequence[Features], threads: int, names: Sequence[str]
) -> Iterator[Array]:
    """float32 [tokens, llm_dim] of each clip, [patches, dim] without a projector."""
    encoder = Encoder(place(ENCODER), spec, threads=threads)
    projector = Projector(place(PROJECTOR), spec, threads=threads) if PROJECTOR in names else None
    for clip in clips:
        patches = encoder.patches(clip)
        yield projector.embeddings(patches) if projector else patches


def check_encoder(source: Bundle, precision: EncoderPrecision) -> None:
    """Whether a bundle's encoder can be stored in a precision, before any work is done.

    Raises:
        QuantizeError: it is quantized already.
    """
    stored = source.manifest.encoder.precision
    if stored not in ("fp32", precision):
        raise QuantizeError(
            f"the encoder of {source.folder} is {stored} already, and to quantize it twice would lose more; start from "
            "a bundle whose encoder is fp32, as `dasheng-edge export` makes it"
        )


def quantize_encoder(
    source: Bundle,
    place: Callable[[str], Path],
    options: EncoderOptions,
    clips: Sequence[Features],
    threads: int,
    advance: Advance = no_advance,
) -> EncoderReport:
    """Write encoder and projector of a bundle in a precision; `place` says where a file of the new bundle goes.

    `clips` are what the loss is measured on, and what `mixed` chooses by.

    Raises:
        QuantizeError: the source is quantized already, a weight or an activation does not fit, the loss is larger than
            the precision explains, or no mixture keeps what was asked for.
    """
    check_encoder(source, options.precision)
    stored = source.manifest.encoder.precision
    graphs = _Source(source, clips, threads)
    if options.precision == stored:
        size = 0
        for file in source.manifest.files:
            if file.startswith(tuple(name.removesuffix("onnx") for name in graphs.names)):
                size += Path(shutil.copyfile(source.path(file), place(file))).stat().st_size
        return EncoderReport(size, size, None, {}, {})
    largest = check_float16(Chain(source, clips, threads)) if options.precision == "fp16" else None
    wanted = list(graphs.outputs(source.path))
    plan = _plan(graphs, options, wanted, place(ENCODER).parent, advance)
    size, deviation = _write(graphs, place, plan, wanted, options.precision)
    if plan.smoothing:
        bare = replace(plan, smoothing={})
        if _trial(graphs, bare, wanted, place(ENCODER).parent) <= deviation.noise_share:
            plan = bare
            size, deviation = _write(graphs, place, plan, wanted, options.precision)
    advance(1)
    snr_db, limit = deviation.snr_db, options.limit_snr_db
    if snr_db is not None and limit is not None and not snr_db >= limit:  # written so that NaN fails, too
        raise QuantizeError(
            f"the {options.precision} encoder keeps {snr_db:.1f} dB of signal to noise at its output, "
            f"expected at least {limit:g}; nothing was written. Choose a finer --encoder"
        )
    smoothed = {name: smoothing.exponent for name, smoothing in plan.smoothing.items()}
    return EncoderReport(size, graphs.bytes, snr_db, dict(plan.precisions), smoothed, largest)


def _write(
    graphs: _Source, place: Callable[[str], Path], plan: Plan, wanted: Sequence[Array], precision: EncoderPrecision
) -> tuple[int, Deviation]:
    """Write the graphs of the new bundle: their bytes, and how far their outputs are from what is wanted."""
    size = graphs.write(place, plan, beside=precision == "fp16")
    if precision == "fp16":
        size += _write_cuda(graphs.names, place)
    return size, Deviation.of(zip(graphs.outputs(place), wanted, strict=True))


def _trial(graphs: _Source, plan: Plan, wanted: Sequence[Array], folder: Path) -> float:
    """Share of the output's power that differs with a plan, whose graphs do not stay."""
    with tempfile.TemporaryDirectory(prefix="trial-", dir=folder) as trial:
        graphs.write(Path(trial).joinpath, plan)
        return Deviation.of(zip(graphs.outputs(Path(trial).joinpath), wanted, strict=True)).noise_share


def _write_cuda(names: Sequence[str], place: Callable[[str], Path]) -> int:
    """The graphs that compute in float16, on the weights that are there."""
    size = 0
    for name in names:
        model, path = load_graph(place(name)), place(CUDA_GRAPHS[name])
        to_cuda(model)
        ir.save(model, path)
        size += path.stat().st_size
    return size


def trials(source: Bundle, options: EncoderOptions) -> int:
    """How many steps `quantize_encoder` tells `advance` about: groups of matrices in each precision, and the end."""
    groups = len(groups_of(_Source(source, (), 1).matrices()))
    if options.precision == "mixed":
        return groups * (len(STEPS) - 1) + 1
    return (groups if _smooths(options) else 0) + 1


def _plan(graphs: _Source, options: EncoderOptions, wanted: Sequence[Array], folder: Path, advance: Advance) -> Plan:
    matrices = graphs.matrices()
    if options.precision != "mixed" and not _smooths(options):
        return Plan(dict.fromkeys(matrices, options.precision), {})
    chain = Chain(graphs.bundle, graphs.clips, graphs.threads)
    planner = Planner(chain, smooth=options.smooth, advance=advance)
    if options.precision != "mixed":
        return planner.plan(dict.fromkeys(matrices, options.precision))

    def whole(precisions: Mapping[str, MatrixPrecision]) -> float:
        return _trial(graphs, planner.plan(precisions), wanted, folder)

    return planner.plan(choose(matrices, options.min_snr_db, planner.alone, whole).precisions)


def _smooths(options: EncoderOptions) -> bool:
    return options.smooth and (options.precision == "mixed" or PRECISIONS[options.precision].scales is not None)
