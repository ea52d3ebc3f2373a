"""Trains MiDashengLM-micro: features, base model, adapter.

    python -m benchmarks.micro.training.train                  # everything; run it again after a kill, and it goes on
    python -m benchmarks.micro.training.train --stage adapter  # one stage; the stages before it must have run

Needs espeak-ng. Without the recordings in ../shared/data/fsdd the digits are learnt from espeak-ng alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch

from benchmarks.micro.training import dataset, features
from benchmarks.micro.training.adapter_training import save_adapter, train_adapter
from benchmarks.micro.training.base_training import Corpus, Heads, Trainee, train_base
from benchmarks.micro.training.features import Features
from benchmarks.micro.training.micro_model import EMBEDDING_ROWS, MicroModel, load_checkpoint, save_checkpoint
from benchmarks.micro.training.tokenizer import AUDIO, token_id, train_tokenizer
from benchmarks.micro.training.training_loop import Schedule
from benchmarks.micro.training.writing import train_writing
from benchmarks.places import MICRO, REPOSITORY

WORK = REPOSITORY / "build" / "micro-training"
STAGES = ("features", "base", "adapter")

# Seeds of the training sets, of the sets that training watches; the evaluation has others (evaluate.py).
TRAINING, WATCHED = 1_000_000, 2_000_000
SETS: dict[str, tuple[features.Kind, int, int]] = {
    "scenes": ("scenes", TRAINING, 20_000),
    "espeak": ("espeak", TRAINING, 5_000),
    "real": ("real", TRAINING, 6_000),
    "held out": ("scenes", WATCHED, 500),
    "fresh espeak": ("espeak", WATCHED, 200),
    "unheard": ("unheard", WATCHED, 200),
}
NEEDS_RECORDINGS = ("real", "unheard")
BASE = Schedule(steps=2000, warm_up=60, peak=1e-3)
WRITING = Schedule(steps=300, warm_up=20, peak=5e-4)
ADAPTER = Schedule(steps=600, warm_up=20, peak=2e-3)
THREADS = 2
SEED = 20_260


def sets_at_hand() -> dict[str, tuple[features.Kind, int, int]]:
    """The sets that can be rendered here."""
    if features.FSDD.is_dir():
        return SETS
    print("No recordings in ../shared/data/fsdd: digits are learnt from espeak-ng alone.", flush=True)
    return {name: what for name, what in SETS.items() if name not in NEEDS_RECORDINGS}


def load_corpus(work: Path) -> Corpus:
    """The rendered features."""
    rendered: dict[str, Features] = {
        name: features.load(work / "features", *what) for name, what in sets_at_hand().items()
    }
    return Corpus(
        scenes=rendered["scenes"],
        digits=tuple(rendered[name] for name in ("espeak", "real") if name in rendered),
        held_out=rendered["held out"],
        fresh_espeak=rendered["fresh espeak"],
        unheard=rendered.get("unheard"),
    )


def texts_of(corpus: Corpus) -> list[str]:
    """All that the tokenizer is trained on: answers, and each prompt once per hundred clips."""
    texts = []
    for part in (corpus.scenes, *corpus.digits):
        for index, clip in enumerate(part.clips):
            texts += [*clip.captions, clip.labels, clip.language, clip.digits]
            if index % 100 == 0:
                texts += dataset.PROMPTS
    return texts


def note_time(work: Path, stage: str, wall_s: float, cpu_s: float) -> None:
    """Adds the stage's wall and CPU seconds to `times.json`; a stage that had nothing left to do keeps its old ones."""
    path = work / "times.json"
    times = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    times[stage] = {"wall_s": round(wall_s), "cpu_s": round(cpu_s)}
    path.write_text(json.dumps(times, indent=2) + "\n", encoding="utf-8")
    print(f"{stage}: {wall_s / 60:.1f} minutes, {cpu_s / 60:.1f} CPU minutes", flush=True)


def run_features(work: Path) -> None:
    """Renders what is missing."""
    started = time.monotonic()
    cpu_s = features.render(work / "features", list(sets_at_hand().values()), THREADS)
    if cpu_s:
        note_time(work, "features", time.monotonic() - started, cpu_s)


def run_base(work: Path, out: Path, corpus: Corpus) -> None:
    """Trains the base model and writes the checkpoint."""
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(texts_of(corpus), EMBEDDING_ROWS)
    model = MicroModel()
    model.audio_token_id = token_id(tokenizer, AUDIO)
    note_time(work, "base", *train_base(model, tokenizer, corpus, BASE, work / "base.pt"))
    note_time(work, "writing", *train_writing(model, tokenizer, corpus, WRITING, work / "writing.pt"))
    save_checkpoint(model, tokenizer, out / "checkpoint")


def run_adapter(work: Path, out: Path, corpus: Corpus) -> None:
    """Trains the adapter of the checkpoint as it was written, that is in bf16."""
    model, tokenizer = load_checkpoint(out / "checkpoint")
    trainee = Trainee(model)
    saved = torch.load(work / "base.pt", weights_only=True)["module"]
    heads: Heads = trainee.heads
    heads.load_state_dict({n.removeprefix("heads."): t for n, t in saved.items() if n.startswith("heads.")})
    torch.manual_seed(SEED)
    wrapped, clock = train_adapter(model, heads, tokenizer, corpus, ADAPTER, work / "adapter.pt")
    note_time(work, "adapter", *clock)
    save_adapter(wrapped, out / "adapter")
    shutil.copyfile(work / "times.json", out / "training.json")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro.training.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--stage", choices=("all", *STAGES), default="all")
    parser.add_argument("--work", type=Path, default=WORK, help="features and states (default: build/micro-training)")
    parser.add_argument("--out", type=Path, default=MICRO, help="where checkpoint/ and adapter/ are written")
    options = parser.parse_args()
    stages = STAGES if options.stage == "all" else (options.stage,)
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(THREADS)
    if "features" in stages:
        run_features(options.work)
    if "base" in stages or "adapter" in stages:
        corpus = load_corpus(options.work)
        if "base" in stages:
            run_base(options.work, options.out, corpus)
        if "adapter" in stages:
            run_adapter(options.work, options.out, corpus)


if __name__ == "__main__":
    main()
