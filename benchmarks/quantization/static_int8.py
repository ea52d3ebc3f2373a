"""Static int8 by optimum beside our dynamic int8, in one run: bytes, SNR at the audio embeddings, seconds of a chunk.

    python -m benchmarks.quantization.static_int8 [BUNDLE --calibrate CLIPS --clips CLIPS] [--out FILE.json]

The default is micro, with 48 scenes of its kind and its evaluation clips. Ranges are measured on the first clips, all
encoders are judged on the others: the SNR is that of all their embeddings
(patches of an encoder alone) against those of float32, as `dasheng-edge quantize` states it. The encoders take turns on
a full chunk of 10.08 s on the CPU, which is not what static graphs are for: an NPU runs them. Needs
the npu extra.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from benchmarks.micro.scenes.clip_files import write_clips
from benchmarks.micro.scenes.synthesise import plan_scene, scene_clips
from benchmarks.places import REPOSITORY
from benchmarks.quantization.micro import BUNDLE, CALIBRATION
from benchmarks.records import machine
from benchmarks.records.turns import take_turns, timed
from dasheng_edge.quant.bundle_graphs import GraphsOptions, write_graphs
from dasheng_edge.quant.calibration import calibrate_on
from dasheng_edge.quant.encoder.quantize import EncoderOptions, clip_outputs, quantize_encoder
from dasheng_edge.quant.static.forms import Activations, Method, StaticOptions
from dasheng_edge.quant.static.parts import StaticLayout, StaticParts, random_features
from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.encoder import Encoder
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.bundle.bundle import ENCODER, PROJECTOR, Bundle, weights_file
from dasheng_edge.runtime.clips.clips import find_clips
from dasheng_edge.runtime.deviation import Deviation
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.machine.devices import usable_cores
from dasheng_edge.runtime.progress import no_advance

CLIPS = REPOSITORY / "benchmarks" / "micro" / "clips"
SCENES, ROUNDS = 48, 9


class _Candidates:
    """Folders of graphs, and how each is run."""

    def __init__(self, bundle: Bundle, work: Path, threads: int) -> None:
        self.bundle, self.work, self.threads = bundle, work, threads
        self.spec = bundle.manifest.front_end
        self.layout = StaticLayout(self.spec, self.spec.chunk_frames)
        self.graphs = tuple(name for name in (ENCODER, PROJECTOR) if name in bundle.manifest.files)
        self.names = ["fp32"]

    def make(self, calibrate: Path, features: Sequence[Features]) -> None:
        """Ours in int8, the graphs of one shape, and those by optimum in each way; what is there stays."""
        source, static = self.bundle.folder, self.work / "static fp32"
        self._make("int8", partial(self._dynamic, features))
        self._make("static fp32", partial(write_graphs, GraphsOptions(source, static)))
        for method in get_args(Method):
            for activations in get_args(Activations):
                name, quantized = f"static int8, {method}, {activations}", StaticOptions(method, activations)
                options = GraphsOptions(source, self.work / name, "qdq", calibrate=calibrate, quantized=quantized)
                self._make(name, partial(write_graphs, options))

    def _dynamic(self, features: Sequence[Features]) -> None:
        out = self.work / "int8"
        out.mkdir()
        quantize_encoder(self.bundle, out.joinpath, EncoderOptions("int8"), features, self.threads)

    def _make(self, name: str, make: Callable[[], object]) -> None:
        self.names.append(name)
        if not (self.work / name).exists():
            make()

    def outputs(self, name: str, clips: Sequence[Features]) -> list[Any]:
        """The embeddings of each clip."""
        if name.startswith("static"):
            parts = StaticParts(self.work / name, self.layout, self.threads, self.graphs)
            return [parts.outputs(clip) for clip in clips]
        folder = self.bundle.folder if name == "fp32" else self.work / name
        return list(clip_outputs(self.spec, folder.joinpath, clips, self.threads, self.graphs))

    def run(self, name: str) -> Callable[[], object]:
        """A chunk through the encoder."""
        chunk = random_features(self.spec, [self.layout.samples])[0]
        if name.startswith("static"):
            parts = StaticParts(self.work / name, self.layout, self.threads, ())
            feed, _ = next(self.layout.feeds(chunk))
            return partial(parts.run, feed)
        folder = self.bundle.folder if name == "fp32" else self.work / name
        return partial(Encoder(folder / ENCODER, self.spec, threads=self.threads).patches, chunk)

    def bytes(self, name: str) -> int:
        """Size of encoder and projector."""
        folder = self.bundle.folder if name == "fp32" else self.work / name
        paths = [path for own in self.graphs for path in (folder / own, weights_file(folder / own))]
        return sum(path.stat().st_size for path in paths if path.exists())


def measure(bundle: Bundle, work: Path, calibrate: Path, clips: Path, threads: int) -> dict[str, Mapping[str, Any]]:
    """Bytes, SNR and the seconds of each round, by candidate."""
    candidates = _Candidates(bundle, work, threads)
    audio = AudioParts.open(bundle, EngineOptions().changed(threads=threads))
    heard, judged = (calibrate_on(find_clips(path), audio, no_advance).features for path in (calibrate, clips))
    candidates.make(calibrate, heard)
    wanted = candidates.outputs("fp32", judged)
    names = candidates.names
    snr_db = {name: Deviation.of(zip(candidates.outputs(name, judged), wanted, strict=True)).snr_db for name in names}
    seconds = take_turns({name: timed(candidates.run(name)) for name in names}, ROUNDS)
    return {
        name: {
            "bytes": candidates.bytes(name), "snr_db": snr_db[name],
            "median_s": statistics.median(seconds[name]), "seconds": seconds[name],
        }
        for name in names
    }  # fmt: skip


def _scenes(folder: Path) -> Path:
    """A folder of scenes as micro hears them, other than it was trained on; made unless it is there."""
    if not folder.is_dir():
        write_clips(folder, scene_clips([plan_scene(seed) for seed in range(CALIBRATION, CALIBRATION + SCENES)]))
    return folder


def table(candidates: Mapping[str, Mapping[str, Any]]) -> str:
    """What was measured, as Markdown."""
    lines = ["| | MB | ms | SNR, dB |", "|---|---:|---:|---:|"]
    for name, row in candidates.items():
        snr = "" if row["snr_db"] is None else f"{row['snr_db']:.1f}"
        lines.append(f"| {name} | {row['bytes'] / 1e6:.1f} | {1000 * row['median_s']:.1f} | {snr} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and end with one line of JSON; or show what was measured before."""
    parser = argparse.ArgumentParser(description="Measure static int8 beside dynamic int8.")
    parser.add_argument("bundle", type=Path, nargs="?", default=BUNDLE)
    parser.add_argument("--calibrate", type=Path)
    parser.add_argument("--clips", type=Path, default=CLIPS)
    parser.add_argument("--work", type=Path, help="keep the graphs here; a second run takes what is there")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the table of such a record, and do nothing")
    given = parser.parse_args(arguments)
    if given.show:
        print(table(json.loads(given.show.read_text("utf-8"))["candidates"]))
        return 0
    bundle, threads = Bundle.open(given.bundle, check_sha256=False), usable_cores()
    with tempfile.TemporaryDirectory() as made:
        work = given.work or Path(made)
        work.mkdir(parents=True, exist_ok=True)
        measured = measure(bundle, work, given.calibrate or _scenes(work / "calibration"), given.clips, threads)
    facts = {"model": bundle.manifest.name, "parameters": bundle.manifest.encoder.parameters, "threads": threads}
    if given.out:
        record = {**facts, "machine": machine.card(), "candidates": measured}
        given.out.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(table(measured))
    print(json.dumps({**facts, "candidates": measured}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
