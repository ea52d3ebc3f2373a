"""Captions the evaluation clips of MiDashengLM-micro with a bundle and prints them beside the references.

    python -m benchmarks.demo build/micro

The last line is JSON. Four recordings of real voices, which are no part of this repository, are captioned too where
FOLDER (--recordings) holds `fsdd/` (the Free Spoken Digit Dataset) and `clips/jfk.flac`; what is missing there is said.
They are counted apart from the evaluation clips.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import wave
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
import numpy.typing as npt
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from benchmarks.micro.scenes.spoken_digits import make_real_digits
from benchmarks.micro.scenes.synthesise import named_kinds
from benchmarks.places import DATA, MICRO
from dasheng_edge.runtime import Caption, Captioner

CLIPS = MICRO / "clips"
DESCRIBE = "Write an audio caption describing the sound"
TRANSCRIBE = "Transcribe the speech into text <|en|>"
RATE_HZ = 16_000
MAX_NEW_TOKENS = 64  # the longest reference has about 30
SCENES_SHOWN, DIGITS_SHOWN = 8, 3


@dataclass(frozen=True)
class Clip:
    """One thing to listen to. A caption must name `kinds`; a transcript must say `digits` ("4 0 7")."""

    name: str
    seconds: float
    audio: Path | tuple[npt.NDArray[np.float32], int]
    reference: str
    kinds: frozenset[str]
    digits: str
    real: bool = False

    @property
    def prompt(self) -> str:
        """What the model is asked about this clip."""
        return TRANSCRIBE if self.digits else DESCRIBE


@dataclass(frozen=True)
class Answer:
    """What the model said about a clip."""

    clip: Clip
    caption: Caption

    @property
    def text(self) -> str:
        """The answer without the space around it."""
        return self.caption.text.strip()

    def judgement(self) -> str:
        """What is wrong with the answer, or "right"."""
        if self.clip.digits:
            words = jiwer.process_words(self.clip.digits, self.text)
            wrong = words.substitutions + words.deletions + words.insertions
            return f"{wrong} of {len(self.clip.digits.split())} digits wrong" if wrong else "right"
        named = named_kinds(self.text)
        missed, added = sorted(self.clip.kinds - named), sorted(named - self.clip.kinds)
        parts = [f"missed {', '.join(missed)}"] * bool(missed) + [f"added {', '.join(added)}"] * bool(added)
        return "; ".join(parts) or "right"


def evaluation_clips(folder: Path) -> list[Clip]:
    """The committed clips, as `references.jsonl` describes them."""
    clips = []
    for line in (folder / "references.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        digits = row.get("digits") or ""
        reference = digits or row["captions"][0]
        kinds = frozenset(row.get("kinds") or ())
        clips.append(Clip(row["file"], row["seconds"], folder / row["file"], reference, kinds, digits))
    return clips


def wav_seconds(path: Path) -> float:
    """Length of a WAV file."""
    with wave.open(str(path), "rb") as file:
        return file.getnframes() / file.getframerate()


def recorded_clips(folder: Path) -> tuple[list[Clip], list[str]]:
    """Real voices: one file as it is, two strings spliced from one speaker's files each, and a speech.

    Of those that are not in the folder, a description each.
    """
    clips: list[Clip] = []
    missing: list[str] = []
    digits, speech = folder / "fsdd", folder / "clips" / "jfk.flac"
    if not digits.is_dir():
        missing.append("3 of spoken digits (fsdd/, the Free Spoken Digit Dataset)")
    else:
        one = digits / "7_jackson_3.wav"
        clips.append(Clip(f"fsdd {one.name}", wav_seconds(one), one, "7", frozenset(), "7", real=True))
        for seed, speaker in ((5, "george"), (2, "lucas")):
            made = make_real_digits(seed, digits, [speaker])
            seconds = len(made.waveform) / RATE_HZ
            audio = (made.waveform, RATE_HZ)
            clips.append(Clip(f"fsdd, {speaker}", seconds, audio, made.digits, frozenset(), made.digits, real=True))
    if not speech.is_file():
        missing.append("1 of a speech (clips/jfk.flac)")
    else:
        reference = "a man speaks English"
        clips.append(Clip("jfk.flac", 11.0, speech, reference, named_kinds(reference), "", real=True))
    return clips, missing


def spread(clips: list[Clip]) -> list[Clip]:
    """A few of all clips, evenly: scenes, then digit strings."""
    scenes, digits = [c for c in clips if not c.digits], [c for c in clips if c.digits]
    return [*evenly(scenes, SCENES_SHOWN), *evenly(digits, DIGITS_SHOWN)]


def evenly(clips: list[Clip], count: int) -> list[Clip]:
    """At most `count` clips at even distances."""
    return clips[:: max(-(-len(clips) // count), 1)]


def event_f1(answers: Iterable[Answer]) -> float:
    """2 TP / (2 TP + FP + FN) over all kinds of all scenes; a kind counts if the caption names it."""
    pairs = [(named_kinds(one.text), one.clip.kinds) for one in answers if not one.clip.digits]
    named_right = sum(len(named & kinds) for named, kinds in pairs)
    return 2 * named_right / max(sum(len(named) + len(kinds) for named, kinds in pairs), 1)


def digit_error_rate(answers: Iterable[Answer]) -> float | None:
    """Wrong digits per spoken digit; None without digit clips."""
    spoken = [one for one in answers if one.clip.digits]
    return jiwer.wer([one.clip.digits for one in spoken], [one.text for one in spoken]) if spoken else None


def show(console: Console, answer: Answer) -> None:
    """The clip, what it is, what the model said and what is wrong with that."""
    judgement = answer.judgement()
    rows = Table.grid(padding=(0, 2))
    rows.add_row("  reference", Text(answer.clip.reference))
    rows.add_row("  model", Text(answer.text))
    rows.add_row("", Text(judgement, "green" if judgement == "right" else "red"))
    console.print(Text(f"{answer.clip.name}, {answer.clip.seconds:.1f} s", "bold"))
    console.print(rows)


def stage_values(answers: list[Answer]) -> dict[str, list[float]]:
    """Milliseconds of each stage, one value per clip."""
    stages = [field.name for field in dataclasses.fields(answers[0].caption.timings)]
    return {
        name: [float(getattr(one.caption.timings, name)) for one in answers] for name in stages if name.endswith("_ms")
    }


def timing_table(answers: list[Answer]) -> Table:
    """Median and 90th percentile of each stage, over all clips."""
    table = Table(title=f"Stages of {len(answers)} clips", title_justify="left", box=SIMPLE_HEAD)
    for column in ("stage", "median ms", "p90 ms"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, values in stage_values(answers).items():
        stage = name.removesuffix("_ms").replace("_", " ")
        table.add_row(stage, f"{np.percentile(values, 50):.1f}", f"{np.percentile(values, 90):.1f}")
    return table


def summary(answers: list[Answer], bundle: Path) -> dict[str, float | int | None]:
    """The numbers of the last line. Real recordings do not enter `event_f1` and `digit_error_rate`."""
    own = [one for one in answers if not one.clip.real]
    real = [one for one in answers if one.clip.real]
    return {
        "event_f1": event_f1(own),
        "digit_error_rate": digit_error_rate(own),
        "real_digit_error_rate": digit_error_rate(real),
        "clips": len(answers),
        "right": sum(one.judgement() == "right" for one in answers),
        "bundle_bytes": sum(file.stat().st_size for file in bundle.iterdir()),
        **{f"median_{name}": statistics.median(values) for name, values in stage_values(answers).items()},
    }


def main(arguments: list[str]) -> int:
    """Captions, prints, and ends with one line of JSON."""
    parser = argparse.ArgumentParser(description="Caption the evaluation clips of MiDashengLM-micro.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clips", type=Path, default=CLIPS, metavar="FOLDER")
    parser.add_argument("--recordings", type=Path, default=DATA, metavar="FOLDER")
    options = parser.parse_args(arguments)
    own, (real, missing) = evaluation_clips(options.clips), recorded_clips(options.recordings)
    console, progress = Console(highlight=False), Console(stderr=True)
    answers = []
    with Captioner.open(options.bundle) as captioner:
        for clip in track(own + real, "listening", console=progress, transient=True):
            caption = captioner.caption(clip.audio, prompt=clip.prompt, max_new_tokens=MAX_NEW_TOKENS)
            answers.append(Answer(clip, caption))
    shown = spread(own) + real
    for answer in answers:
        if answer.clip in shown:
            show(console, answer)
    if missing:
        what = f"Recordings of real voices are missing: {'; '.join(missing)}."
        why = "They are not in this repository; pass the folder that holds them with --recordings."
        console.print(f"\n{what} {why}", soft_wrap=True)
    console.print(f"\n{len(shown)} of {len(answers)} clips are shown; the numbers below are about all of them.\n")
    console.print(timing_table(answers))
    numbers = summary(answers, options.bundle)
    print(json.dumps({key: round(n, 4) if isinstance(n, float) else n for key, n in numbers.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
