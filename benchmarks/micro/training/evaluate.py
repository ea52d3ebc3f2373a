"""Scores MiDashengLM-micro on held-out scenes and digit clips: the PyTorch model, and bundles beside it.

    python -m benchmarks.micro.training.evaluate                        # PyTorch, without and with the adapter
    python -m benchmarks.micro.training.evaluate --bundle build/micro   # and a bundle, side by side
    python -m benchmarks.micro.training.evaluate --bundle build/micro --write-card  # renews scores.json and the card

The clips are made by seed; no training step saw these seeds, nor the held-out speaker of the real recordings.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import jiwer
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.micro.scenes.speech import PROGRAM as ESPEAK
from benchmarks.micro.scenes.spoken_digits import DigitClip, make_espeak_digits, make_real_digits
from benchmarks.micro.scenes.synthesise import Scene, make_scene, named_kinds
from benchmarks.micro.training import dataset
from benchmarks.micro.training.base_training import event_f1
from benchmarks.micro.training.features import FSDD, HELD_OUT_SPEAKERS, TRAINING_SPEAKERS
from benchmarks.micro.training.micro_model import MicroModel, load_checkpoint
from benchmarks.micro.training.tokenizer import END_OF_TEXT, IM_END, prompt_ids, token_id
from benchmarks.places import MICRO
from dasheng_edge.export.variants.spectrograms import LogMel
from dasheng_edge.runtime.atomic_output import replace_text
from dasheng_edge.runtime.captioner import Captioner

if TYPE_CHECKING:
    from transformers import Qwen2TokenizerFast

CARD, SCORES, TRAINING = MICRO / "README.md", MICRO / "scores.json", MICRO / "training.json"
BEGIN, END = "<!-- scores: written by evaluate.py -->", "<!-- end of scores -->"
FIRST_SEED = 3_000_000
RATE_HZ = 16_000
ANSWER_TOKENS = 64

Samples = NDArray[np.float32]
Ask = Callable[[Samples, str], str]  # waveform at 16 kHz, prompt -> answer


@dataclass(frozen=True)
class Scores:
    """Shares from 0 to 1; None where the clips could not be made here.

    F1 is micro-averaged over kinds; a digit error rate is edits over digits, and may exceed 1.
    """

    event_f1: float | None
    label_f1: float | None
    language: float | None
    language_of_speech: float | None
    digit_error_espeak: float | None
    digit_error_held_out: float | None
    digit_error_seen: float | None


TITLES = {
    "event_f1": "event F1 of the captions",
    "label_f1": "event F1 of the labels",
    "language": "language right, all scenes",
    "language_of_speech": "language right, scenes with speech",
    "digit_error_espeak": "digit error, espeak-ng",
    "digit_error_held_out": "digit error, real, held-out speaker",
    "digit_error_seen": "digit error, real, seen speakers",
}


@dataclass(frozen=True)
class Clips:
    """The evaluation clips; an empty set could not be made on this machine."""

    scenes: Sequence[Scene]
    espeak: Sequence[DigitClip]
    held_out: Sequence[DigitClip]
    seen: Sequence[DigitClip]


def make_clips(count: int) -> Clips:
    """`count` clips of each set; says what is missing where a set cannot be made."""
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    has_espeak, has_recordings = shutil.which(ESPEAK) is not None, FSDD.is_dir()
    if not has_espeak:
        print(f"{ESPEAK} is not installed: scenes and synthetic digits are left out.")
    if not has_recordings:
        print("No recordings in ../shared/data/fsdd: real digits are left out.")
    real = seeds if has_recordings else ()
    return Clips(
        scenes=[make_scene(seed) for seed in seeds] if has_espeak else [],
        espeak=[make_espeak_digits(seed) for seed in seeds] if has_espeak else [],
        held_out=[make_real_digits(seed, FSDD, HELD_OUT_SPEAKERS) for seed in real],
        seen=[make_real_digits(seed, FSDD, TRAINING_SPEAKERS) for seed in real],
    )


def asks_torch(model: MicroModel, tokenizer: Qwen2TokenizerFast) -> Ask:
    """Greedy answers of the PyTorch model in float32, one clip at a time."""
    to_log_mel = LogMel()
    stops = [token_id(tokenizer, token) for token in (IM_END, END_OF_TEXT)]

    def ask(waveform: Samples, prompt: str) -> str:
        ids = prompt_ids(tokenizer, prompt, dataset.SPEC.tokens_of(len(waveform)))
        log_mel = to_log_mel(torch.from_numpy(waveform)[None])
        return str(tokenizer.decode(model.answer(log_mel, len(waveform), ids, stops, ANSWER_TOKENS)))

    return ask


def asks_bundle(captioner: Captioner) -> Ask:
    """Greedy answers of a bundle through the runtime."""

    def ask(waveform: Samples, prompt: str) -> str:
        return captioner.caption((waveform, RATE_HZ), prompt=prompt, max_new_tokens=ANSWER_TOKENS).text

    return ask


def digit_error(ask: Ask, clips: Sequence[DigitClip]) -> float | None:
    """Edits between the digits of the answers and those spoken, per digit spoken."""
    if not clips:
        return None
    said = [ask(clip.waveform, dataset.TRANSCRIPT_PROMPT) for clip in clips]
    return float(jiwer.wer([clip.digits for clip in clips], [" ".join(re.findall(r"[0-9]", text)) for text in said]))


def score(ask: Ask, clips: Clips) -> Scores:
    """All scores of one model."""
    scenes = clips.scenes
    events = [frozenset(event.kind for event in scene.events) for scene in scenes]
    captions = [named_kinds(ask(scene.waveform, dataset.CAPTION_PROMPT)) for scene in scenes]
    labels = [frozenset(ask(scene.waveform, dataset.LABELS_PROMPT).split("; ")) for scene in scenes]
    right = [ask(scene.waveform, dataset.LANGUAGE_PROMPT) == scene.language for scene in scenes]
    spoken = [hit for hit, scene in zip(right, scenes, strict=True) if scene.language != "none"]
    return Scores(
        event_f1=event_f1(captions, events) if scenes else None,
        label_f1=event_f1(labels, events) if scenes else None,
        language=float(np.mean(right)) if scenes else None,
        language_of_speech=float(np.mean(spoken)) if spoken else None,
        digit_error_espeak=digit_error(ask, clips.espeak),
        digit_error_held_out=digit_error(ask, clips.held_out),
        digit_error_seen=digit_error(ask, clips.seen),
    )


def score_all(checkpoint: Path, adapter: Path, bundles: Sequence[Path], clips: Clips) -> dict[str, Scores]:
    """Scores by the name of what answered."""
    model, tokenizer = load_checkpoint(checkpoint)
    out = {"PyTorch": score(asks_torch(model, tokenizer), clips)}
    if adapter.is_dir():
        from peft import PeftModel

        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        out["PyTorch + adapter"] = score(asks_torch(merged.eval(), tokenizer), clips)
    for path in bundles:
        with Captioner.open(path) as captioner:
            out[f"bundle {path.name}"] = score(asks_bundle(captioner), clips)
    return out


def shown(value: float | None) -> str:
    """A share in per cent."""
    return "-" if value is None else f"{100 * value:.1f} %"


def rows(scores: dict[str, Scores]) -> list[list[str]]:
    """The table's body: one row per score, one column per model."""
    return [
        [TITLES[field.name], *(shown(getattr(score, field.name)) for score in scores.values())]
        for field in fields(Scores)
    ]


def card_block(scores: dict[str, Scores], count: int) -> str:
    """What stands between the marks of the model card."""
    lines = [
        "| of " + f"{count} clips each | " + " | ".join(scores) + " |",
        "|---|" + "---|" * len(scores),
        *("| " + " | ".join(row) + " |" for row in rows(scores)),
    ]
    if TRAINING.exists():
        times = json.loads(TRAINING.read_text(encoding="utf-8"))
        stages = ", ".join(f"{name} {stage['cpu_s'] / 60:.0f}" for name, stage in times.items())
        total = sum(stage["cpu_s"] for stage in times.values()) / 60
        wall = sum(stage["wall_s"] for stage in times.values()) / 60
        lines += [
            "",
            (
                f"Training took {total:.0f} CPU minutes ({stages}), that is {total / 2:.0f} minutes of two cores; "
                f"{wall:.0f} minutes by the clock, on a machine that did other work beside it."
            ),
        ]
    return "\n".join(lines)


def write_card(scores: dict[str, Scores], count: int) -> None:
    """Renews scores.json and the marked block of the model card."""
    card = CARD.read_text(encoding="utf-8")
    before, after = card.split(BEGIN)[0], card.split(END)[1]
    record = {"count": count, "first_seed": FIRST_SEED, "scores": {n: asdict(s) for n, s in scores.items()}}
    replace_text(SCORES, json.dumps(record, indent=2) + "\n")
    replace_text(CARD, f"{before}{BEGIN}\n{card_block(scores, count)}\n{END}{after}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro.training.evaluate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--bundle", type=Path, action="append", default=[], help="a bundle to score as well; repeatable"
    )
    parser.add_argument("--count", type=int, default=200, help="clips of each set")
    parser.add_argument("--checkpoint", type=Path, default=MICRO / "checkpoint")
    parser.add_argument("--adapter", type=Path, default=MICRO / "adapter", help="skipped where there is none")
    parser.add_argument("--write-card", action="store_true", help="renew scores.json and the model card")
    options = parser.parse_args()
    scores = score_all(options.checkpoint, options.adapter, options.bundle, make_clips(options.count))
    table = Table("", *scores, title=f"MiDashengLM-micro, {options.count} clips of each set")
    for row in rows(scores):
        table.add_row(*row)
    Console().print(table)
    if options.write_card:
        write_card(scores, options.count)
    print(json.dumps({name: asdict(score) for name, score in scores.items()}))


if __name__ == "__main__":
    main()
