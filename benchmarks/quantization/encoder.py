"""An encoder of the 7B's shape (630 M parameters, random weights) in every precision: bytes, SNR and seconds.

    python -m benchmarks.quantization.encoder BUNDLE [--out FILE.json]

BUNDLE is made by `dasheng-edge export` of `python -m benchmarks.synthetic.checkpoint dasheng-0.6b DIR`. A clip of 10 s;
the precisions take turns, so that what else the machine does hits all of them; medians. `mixed` and smoothing are
chosen on six clips of noise, and what that takes is in `made_s`. Random weights say nothing about the SNR of a trained
encoder, which has outliers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.records import machine
from benchmarks.records.turns import take_turns, timed
from dasheng_edge.quant.encoder.quantize import EncoderOptions, quantize_encoder
from dasheng_edge.runtime.audio.audio_parts import AudioParts
from dasheng_edge.runtime.audio.encoder import Encoder
from dasheng_edge.runtime.bundle.bundle import ENCODER, Bundle
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.machine.devices import usable_cores

OPTIONS = {
    "fp16": EncoderOptions("fp16"),
    "int8": EncoderOptions("int8"),
    "int8, smoothed": EncoderOptions("int8", smooth=True),
    "int8-block": EncoderOptions("int8-block"),
    "int4-block": EncoderOptions("int4-block"),
    "mixed": EncoderOptions("mixed", min_snr_db=30.0, smooth=True),
}
CLIP_S, CLIPS, ROUNDS = 10, 6, 5


def measure(bundle: Bundle, work: Path, threads: int) -> dict[str, object]:
    """Bytes, SNR and the seconds of each round, by precision."""
    spec = bundle.manifest.front_end
    audio = AudioParts.open(bundle, EngineOptions().changed(threads=threads))
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (CLIPS, CLIP_S * spec.sample_rate_hz)).astype(np.float32)
    clips = [audio.front_end.features([one]) for one in noise]
    clip, reports, made_s = clips[0], {}, {}
    encoders = {"fp32": audio.encoder}
    for name, options in OPTIONS.items():
        folder = work / name
        folder.mkdir()
        start = time.perf_counter()
        reports[name] = quantize_encoder(bundle, folder.joinpath, options, clips, threads)
        made_s[name] = time.perf_counter() - start
        encoders[name] = Encoder(folder / ENCODER, spec, threads=threads)
    seconds = take_turns({name: timed(partial(one.patches, clip)) for name, one in encoders.items()}, ROUNDS)
    base = statistics.median(seconds["fp32"])
    return {
        name: {
            "bytes": reports[name].bytes if name in reports else reports["int8"].source_bytes,
            "snr_db": reports[name].snr_db if name in reports else None,
            "matrices": dict(Counter(reports[name].matrices.values())) if name in reports else {},
            "smoothed": len(reports[name].smoothed) if name in reports else 0,
            "made_s": made_s.get(name),
            "seconds": values,
            "median_s": statistics.median(values),
            "times_faster_than_fp32": base / statistics.median(values),
        }
        for name, values in seconds.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description="Measure an encoder in every precision.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    bundle, threads = Bundle.open(given.bundle, check_sha256=False), usable_cores()
    with tempfile.TemporaryDirectory(dir=given.bundle.parent) as work:
        measured = measure(bundle, Path(work), threads)
    facts = {"parameters": bundle.manifest.encoder.parameters, "threads": threads, "clip_s": CLIP_S}
    record = {**facts, "machine": machine.card(), "precisions": measured}
    if given.out:
        given.out.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(json.dumps({**facts, "precisions": measured}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
