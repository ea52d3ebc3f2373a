"""How long it takes to hear a clip, next to the audio encoder of the same size that llama.cpp has: Qwen2-Audio's.

    python -m benchmarks.speed.mtmd BUNDLE

Samples to embeddings, by turns. llama.cpp's mtmd has random weights of the shape of
Whisper large-v3 in F16 and Q8_0; it fills every clip up to 30 s. A clip costs a prompt as many rows as it has
embeddings. The last line is JSON.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.bundle_process import hear
from benchmarks.peers.workers import Message, Worker
from benchmarks.records.benchmark import Benchmark, parser, run
from benchmarks.records.plots import Panel, bars, bars_of
from benchmarks.records.record import Record
from benchmarks.records.section import Section, table
from benchmarks.records.turns import field, take_turns, times
from benchmarks.synthetic.noise import noise
from benchmarks.synthetic.whisper import LARGE, Precision, write_whisper
from dasheng_edge.runtime import Bundle
from dasheng_edge.runtime.audio.audio_parts import AudioInputParts
from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.engine_options import EngineOptions, EngineSettings
from dasheng_edge.runtime.text.model import TextModel, load_model

OURS = "dasheng-edge"
THEIRS: Mapping[str, Precision] = {"llama.cpp mtmd F16": "F16", "llama.cpp mtmd Q8_0": "Q8_0"}
CLIPS_S = (10, 28)  # both within the 30 s that each clip is filled up to
CLIP_S = 10  # of the headline
Turn = tuple[str, int]


def measure(bundle: Bundle, work: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds and rows of each clip."""
    decoder, _ = bundle.path(DECODER), bundle.decoder_facts
    width = _width(decoder)
    with ExitStack() as stack:
        encoders: dict[str, Callable[[Path], Message]] = {OURS: _ours(bundle, threads)}
        for name, precision in THEIRS.items():
            encoder = work / f"{precision}.gguf"
            write_whisper(encoder, width, precision)
            arguments = (decoder.resolve(), encoder.resolve(), "--threads", str(threads))
            encoders[name] = _theirs(stack.enter_context(Worker("mtmd_worker", *arguments)))
        turns: dict[Turn, Callable[[], Message]] = {}
        for seconds in CLIPS_S:
            clip = work / f"{seconds}.npy"
            np.save(clip, noise(seconds))
            turns |= {(name, seconds): partial(encode, clip) for name, encode in encoders.items()}
        taken = take_turns(turns, rounds)
    return {
        "encoder": bundle.manifest.encoder.precision,
        "parameters": {OURS: bundle.manifest.encoder.parameters, **dict.fromkeys(THEIRS, LARGE.parameters)},
        "clips": {
            str(seconds): {
                name: {what: field(taken[name, seconds], what) for what in taken[name, seconds][0]} for name in encoders
            }
            for seconds in CLIPS_S
        },
    }


def _ours(bundle: Bundle, threads: int) -> Callable[[Path], Message]:
    audio = AudioInputParts.open(bundle, EngineOptions().changed(threads=threads))
    return lambda clip: hear(audio, [np.load(clip)])


def _theirs(worker: Worker) -> Callable[[Path], Message]:
    return lambda clip: worker.ask(encode=str(clip))


def _width(decoder: Path) -> int:
    model = TextModel(load_model(decoder, EngineSettings())[0])
    return model.n_embd


def headline(record: Record) -> dict[str, float]:
    """How many times as long llama.cpp takes."""
    clips = record["clips"][str(CLIP_S)]
    return {name: times(timed["seconds"], clips[OURS]["seconds"]) for name, timed in clips.items() if name != OURS}


def section(record: Record) -> Section:
    """Next to the encoder that llama.cpp has."""
    rows = [
        [
            f"{clip} s: {name}", f"{record['parameters'][name] / 1e6:.0f}", f"{timed['seconds']['p50']:.3f}",
            f"{timed['seconds']['p90']:.3f}", f"{times(timed['seconds'], clips[OURS]['seconds']):.1f}",
            f"{timed['rows']['p50']:.0f}",
        ]
        for clip, clips in record["clips"].items()
        for name, timed in clips.items()
    ]  # fmt: skip
    about = (
        "From samples to the rows that a decoder is given: llama.cpp's own library for audio, mtmd, with an encoder of "
        f"the shape of Qwen2-Audio's (Whisper large-v3), next to ours in {record['encoder']}. Theirs fills every clip "
        "up to 30 s."
    )
    head = ("clip", "M parameters", "p50, s", "p90, s", "times ours", "rows to prefill")
    clips = record["clips"][str(CLIP_S)]
    panel = Panel(bars_of({name: timed["seconds"] for name, timed in clips.items()}, 1, (OURS,)), "seconds")
    plot = bars([panel], f"Hearing {CLIP_S} s of audio")
    return Section(f"Encoding audio beside llama.cpp, {record['model']}", f"{about}\n\n{table(head, rows)}", plot)


BENCHMARK = Benchmark("mtmd", headline, section, rank=6)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if it cannot be measured."""
    given = parser(__doc__, "bundle").parse_args(arguments)

    def measured(bundle: Bundle) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=given.bundle.parent, prefix=".mtmd-") as work:
            return measure(bundle, Path(work), given.threads, given.rounds)

    return run(BENCHMARK, given, measured)


if __name__ == "__main__":
    sys.exit(main())
