"""How fast the audio encoder is in ONNX Runtime, in PyTorch, and next to its GEMMs alone.

    python -m benchmarks.speed.encoder CHECKPOINT BUNDLE

BUNDLE is CHECKPOINT exported in fp32; `make bench` takes the encoder of the 7B (630 M parameters) with random weights.
All variants have the same clip of one full chunk, 10.08 s, and take turns; ours have clips of 2, 5 and 30 s as well.
SNR is that of the patches against PyTorch in fp32. The last line is JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.gemms import Kind, gemm_feed, matrix_shapes, operations, write_gemms
from benchmarks.peers.workers import PASSIVE, Worker, torch_arguments
from benchmarks.records.benchmark import ENCODER as ENCODER_MODEL
from benchmarks.records.benchmark import Benchmark, Target, parser, run
from benchmarks.records.plots import Panel, bars, bars_of
from benchmarks.records.record import BenchmarkError, Record
from benchmarks.records.section import NONE, Section, megabytes, ms, table
from benchmarks.records.turns import summed_up, take_turns, timed, times
from benchmarks.synthetic.noise import noise
from dasheng_edge.quant.encoder.quantize import EncoderOptions, quantize_encoder
from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.encoder import Encoder, chunk_feeds
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.audio.onnx_session import load_onnxruntime, onnx_session, spinning
from dasheng_edge.runtime.bundle.bundle import ENCODER, Bundle
from dasheng_edge.runtime.deviation import Deviation
from dasheng_edge.runtime.engine_options import EngineOptions

CHUNK = "10"  # the clip that all variants have, which fills one chunk
CLIPS_S = {"2": 2.0, "5": 5.0, CHUNK: 10.08, "30": 30.0}
EXACT, INT8, TORCH, TORCH_BF16, PEAK, EXACT_PEAK = (
    "ONNX Runtime fp32", "ONNX Runtime int8", "PyTorch fp32", "PyTorch bf16", "int8 GEMMs alone", "fp32 GEMMs alone"
)  # fmt: skip
PROFILED_RUNS = 5
OPERATORS = 8  # of the profile, the costliest
Turn = tuple[str, str]  # variant, clip
Profile = dict[str, dict[str, float]]
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """What to measure; `work` holds temporary graphs and arrays."""

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
    audio = AudioParts.open(bundle, EngineOptions().changed(threads=threads))
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
    """PyTorch's patches of a clip, and a function that encodes it again; the stack ends the process."""
    stored, saved = task.work / "features.npz", task.work / f"{dtype}.npy"
    acoustic = {} if features.acoustic is None else {"acoustic": features.acoustic}
    arrays = {"log_mel": features.log_mel, "samples": np.array(features.samples), **acoustic}
    np.savez(stored, **arrays)  # type: ignore[arg-type]  # its other argument is a boolean
    arguments = torch_arguments(task.checkpoint, dtype, task.threads)
    worker = stack.enter_context(Worker("torch_worker", *arguments, "--encoder", environment=PASSIVE))
    worker.ask(encode=str(stored), save=str(saved))
    patches: Array = np.load(saved)
    return patches, lambda: float(worker.ask(encode=str(stored))["seconds"])


def profile_graph(path: Path, feed: Mapping[str, NDArray[Any]], threads: int, runs: int) -> Profile:
    """Milliseconds and calls per run of each operator, the costliest first; a run before is not counted.

    The session has the options of `dasheng_edge.runtime.machine.devices.onnx_session`. Profiling itself costs some
    time, so these are shares rather than speeds.
    """
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    for key, value in spinning(onnxruntime.__version__).items():
        options.add_session_config_entry(key, value)
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(1 + runs):
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return by_operator(events, runs)


def by_operator(events: Iterable[Mapping[str, Any]], runs: int) -> Profile:
    """Events of ONNX Runtime's trace, in microseconds -> milliseconds and calls per run; the first run is left out."""
    kernels = [
        (str(event["args"]["op_name"]), float(event["dur"]))
        for event in sorted(events, key=lambda event: float(event.get("ts", 0)))
        if event.get("cat") == "Node" and str(event["name"]).endswith("kernel_time")
    ]
    kept = kernels[len(kernels) // (1 + runs) :]  # every run calls the same kernels
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for name, microseconds in kept:
        spent[name] += microseconds  # type: ignore[assignment]  # Counter is typed for int, and adds floats as well
        calls[name] += 1
    return {name: {"ms": spent[name] / runs / 1000, "calls": calls[name] / runs} for name, _ in spent.most_common()}


def headline(record: Record) -> dict[str, float]:
    """The main numbers of a record."""
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


def section(record: Record) -> Section:
    """Precisions with speed and SNR in one row, lengths, operators."""
    chunk = record["seconds"][CHUNK]
    rows = [
        [
            name, ms(timed["p50"]), ms(timed["p90"]), f"{times(chunk[TORCH], timed):.2f}",
            _decibel(record["snr_db"], name), megabytes(record["bytes"].get(name)),
        ]
        for name, timed in chunk.items()
    ]  # fmt: skip
    lengths = [
        [f"{clip} s", *(ms(timed[name]["p50"]) for name in (EXACT, INT8)),
         f"{times(timed[EXACT], timed[INT8]):.2f}"]
        for clip, timed in sorted(record["seconds"].items(), key=lambda item: float(item[0]))
    ]  # fmt: skip
    total = sum(row["ms"] for row in record["profile"].values())
    profile = [
        [name, f"{row['ms']:.1f}", f"{row['calls']:g}", f"{100 * row['ms'] / total:.1f} %"]
        for name, row in list(record["profile"].items())[:OPERATORS]
    ]
    peaks = [record["gemm_operations"] / chunk[name]["p50"] / 1e9 for name in (PEAK, EXACT_PEAK)]
    floor_s = chunk[PEAK]["p50"] + record["profile"].get("Attention", {"ms": 0.0})["ms"] / 1000
    about = (
        f"{record['parameters'] / 1e6:.0f} M parameters, a clip of one full chunk of {record['patches']} patches. "
        f"The GEMMs alone reach {peaks[0]:.0f} GOP/s in int8 and {peaks[1]:.0f} in fp32, of which ONNX Runtime's fp32 "
        f"encoder gets {times(chunk[EXACT_PEAK], chunk[EXACT]):.0%}. If all but the int8 GEMMs and the "
        f"attention between them took no time, int8 would be {chunk[EXACT]['p50'] / floor_s:.2f} times as fast "
        "as fp32."
    )
    text = "\n\n".join([
        about,
        table(("", "p50, ms", "p90, ms", "times as fast as PyTorch fp32", "SNR to it, dB", "MB"), rows),
        "Clips of other lengths:",
        table(("clip", "fp32, ms", "int8, ms", "int8, times as fast"), lengths),
        "Operators of the int8 graph, by ONNX Runtime's profile (which itself takes time):",
        table(("", "ms", "calls", "share"), profile),
    ])  # fmt: skip
    panel = Panel(bars_of(chunk, 1000, ("ONNX",)), "milliseconds for one chunk (10.08 s)")
    return Section(f"Encoder, {record['model']}", text, bars([panel], f"Encoder {record['model']}"))


def _decibel(timed: Mapping[str, float | None], name: str) -> str:
    if name not in timed:
        return NONE
    value = timed[name]
    return "no difference" if value is None else f"{value:.1f}"


def _ratio(slower: str, faster: str) -> Callable[[Record], float]:
    return lambda record: times(record["seconds"][CHUNK][slower], record["seconds"][CHUNK][faster])


TARGETS = (
    Target("encoder 630M int8", "ONNX Runtime fp32, same graph", 3.6, "times", ENCODER_MODEL, _ratio(EXACT, INT8)),
    Target("encoder 630M int8", "PyTorch bf16", 1.9, "times", ENCODER_MODEL, _ratio(TORCH_BF16, INT8)),
    Target("encoder 630M ONNX Runtime fp32", "PyTorch fp32", 3.0, "times", ENCODER_MODEL, _ratio(TORCH, EXACT)),
    Target("encoder 630M int8", "its GEMMs alone in int8", 0.8, "share", ENCODER_MODEL, _ratio(PEAK, INT8)),
)
BENCHMARK = Benchmark("encoder", headline, section, targets=TARGETS, rank=4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if it cannot be measured."""
    given = parser(__doc__, "checkpoint", "bundle").parse_args(arguments)

    def measured(bundle: Bundle) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=given.bundle.parent, prefix=".encoder-") as work:
            return measure(Task(given.checkpoint, bundle, Path(work), given.threads, given.rounds))

    return run(BENCHMARK, given, measured)


if __name__ == "__main__":
    sys.exit(main())
