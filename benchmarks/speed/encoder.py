"""How fast the audio encoder is in ONNX Runtime, in PyTorch, and next to its GEMMs alone.

    python -m benchmarks.speed.encoder CHECKPOINT BUNDLE

BUNDLE is CHECKPOINT exported in fp32; `make bench` takes the encoder of the 7B (630 M parameters) with random weights.
All variants have the same clip of one full chunk, 10.08 s, and take turns; ours have clips of 2, 5 and 30 s as well.
SNR is that of the patches against PyTorch in fp32. The last line is JSON.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.gemms import Kind, gemm_feed, matrix_shapes, operations, write_gemms
from benchmarks.peers.workers import PASSIVE, Worker, torch_arguments
from benchmarks.records.record import BenchmarkError, parser, run
from benchmarks.records.turns import summed_up, take_turns, timed, times
from benchmarks.speed.operator_profile import profile_graph
from benchmarks.synthetic.noise import noise
from dasheng_edge.quant.encoder.quantize import EncoderOptions, quantize_encoder
from dasheng_edge.runtime.audio.encoder import Encoder, chunk_feeds
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.bundle.bundle import ENCODER, Bundle
from dasheng_edge.runtime.deviation import Deviation
from dasheng_edge.runtime.embedder import AudioParts
from dasheng_edge.runtime.machine.devices import onnx_session

CHUNK = "10"  # the clip that all variants have, which fills one chunk
CLIPS_S = {"2": 2.0, "5": 5.0, CHUNK: 10.08, "30": 30.0}
EXACT, INT8, TORCH, TORCH_BF16, PEAK, EXACT_PEAK = (
    "ONNX Runtime fp32", "ONNX Runtime int8", "PyTorch fp32", "PyTorch bf16", "int8 GEMMs alone", "fp32 GEMMs alone"
)  # fmt: skip
PROFILED_RUNS = 5
Turn = tuple[str, str]  # variant, clip
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """What to measure; `work` is for graphs and arrays that do not stay."""

    checkpoint: Path
    bundle: Bundle
    work: Path
    threads: int
    rounds: int


def measure(task: Task) -> dict[str, Any]:
    """Seconds of each turn, SNR and operators.

    Raises:
        BenchmarkError: the bundle is quantized, or holds adapters that the checkpoint does not.
    """
    bundle, threads = task.bundle, task.threads
    if (precision := bundle.manifest.encoder.precision) != "fp32":
        raise BenchmarkError(f"the encoder of {bundle.folder} is {precision}; give a bundle with one in fp32")
    if bundle.manifest.provenance.adapters:
        raise BenchmarkError(f"{bundle.folder} holds adapters; give a bundle that was exported without")
    audio = AudioParts.open(bundle, device="cpu", threads=threads)
    clips = {name: audio.front_end.features([noise(seconds)]) for name, seconds in CLIPS_S.items()}
    chunk, spec = clips[CHUNK], bundle.manifest.front_end
    report = quantize_encoder(bundle, task.work.joinpath, EncoderOptions("int8"), [chunk], threads)
    encoders = {EXACT: audio.encoder, INT8: Encoder(task.work / ENCODER, spec, threads=threads)}
    patches = {name: encoder.patches(chunk) for name, encoder in encoders.items()}
    turns: dict[Turn, Callable[[], float]] = {
        (name, clip): timed(_encode(encoder, features))
        for clip, features in clips.items()
        for name, encoder in encoders.items()
    }
    chunk_turns = {turn: run for turn, run in turns.items() if turn[1] == CHUNK}
    others = {turn: run for turn, run in turns.items() if turn[1] != CHUNK}
    shapes, rows = matrix_shapes(bundle.path(ENCODER)), len(patches[EXACT])
    kinds: dict[str, Kind] = {PEAK: "int8", EXACT_PEAK: "fp32"}
    for name, kind in kinds.items():
        chunk_turns[name, CHUNK] = timed(_gemms(task.work / f"gemms-{kind}.onnx", shapes, rows, kind, threads))
    with ExitStack() as stack:
        for name, dtype in {TORCH: "fp32", TORCH_BF16: "bf16"}.items():
            patches[name], chunk_turns[name, CHUNK] = _torch(task, dtype, chunk, stack)
        seconds = take_turns(chunk_turns, task.rounds)
    seconds |= take_turns(others, task.rounds, warm_up=0)  # the sessions are warm
    return {
        "parameters": bundle.manifest.encoder.parameters,
        "patches": rows,
        "snr_db": {name: Deviation.of([(got, patches[TORCH])]).snr_db for name, got in patches.items()},
        "bytes": {EXACT: report.source_bytes, INT8: report.bytes},
        "seconds": {clip: _of(clip, seconds) for clip in CLIPS_S},
        "gemm_operations": operations(shapes, rows),
        "profile": profile_graph(task.work / ENCODER, next(iter(chunk_feeds(spec, chunk))), threads, PROFILED_RUNS),
    }


def _of(clip: str, seconds: Mapping[Turn, Sequence[float]]) -> dict[str, dict[str, object]]:
    return {name: summed_up(values) for (name, which), values in seconds.items() if which == clip}


def _encode(encoder: Encoder, features: Features) -> Callable[[], Array]:
    return lambda: encoder.patches(features)


def _gemms(path: Path, shapes: Sequence[tuple[int, int]], rows: int, kind: Kind, threads: int) -> Callable[[], object]:
    """The GEMMs alone, in a session like the encoder's."""
    write_gemms(path, shapes, rows, kind)
    session, feed = onnx_session(path, "cpu", threads), gemm_feed(shapes, rows, kind)
    return lambda: session.run(None, feed)


def _torch(task: Task, dtype: str, features: Features, stack: ExitStack) -> tuple[Array, Callable[[], float]]:
    """PyTorch's patches of a clip, and what encodes it once more; the process ends with the stack."""
    stored, saved = task.work / "features.npz", task.work / f"{dtype}.npy"
    acoustic = {} if features.acoustic is None else {"acoustic": features.acoustic}
    arrays = {"log_mel": features.log_mel, "samples": np.array(features.samples), **acoustic}
    np.savez(stored, **arrays)  # type: ignore[arg-type]  # its other argument is a boolean
    arguments = torch_arguments(task.checkpoint, dtype, task.threads)
    worker = stack.enter_context(Worker("torch_worker", *arguments, "--encoder", environment=PASSIVE))
    worker.ask(encode=str(stored), save=str(saved))
    patches: Array = np.load(saved)
    return patches, lambda: float(worker.ask(encode=str(stored))["seconds"])


def headline(record: Mapping[str, Any]) -> dict[str, float]:
    """What matters most of a record."""
    seconds = record["seconds"][CHUNK]
    return {
        "int8_s": seconds[INT8]["p50"],
        "int8_times_faster_than_fp32": times(seconds[EXACT], seconds[INT8]),
        "int8_times_faster_than_pytorch_bf16": times(seconds[TORCH_BF16], seconds[INT8]),
        "fp32_times_faster_than_pytorch_fp32": times(seconds[TORCH], seconds[EXACT]),
        "int8_share_of_gemm_peak": times(seconds[PEAK], seconds[INT8]),
        "fp32_share_of_gemm_peak": times(seconds[EXACT_PEAK], seconds[EXACT]),
        "gemm_peak_gops": record["gemm_operations"] / seconds[PEAK]["p50"] / 1e9,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if it cannot be measured."""
    given = parser(__doc__, "checkpoint", "bundle").parse_args(arguments)

    def measured(bundle: Bundle) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=given.bundle.parent, prefix=".encoder-") as work:
            return measure(Task(given.checkpoint, bundle, Path(work), given.threads, given.rounds))

    return run("encoder", given, measured, headline)


if __name__ == "__main__":
    sys.exit(main())
