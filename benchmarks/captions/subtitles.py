"""Subtitles of a long file whose sounds are known: which are shown, which are invented, how far from their beginning.

    python -m benchmarks.captions.subtitles BUNDLE

Synthesised scenes of one to three sounds stand one behind the other, with pauses. A label is right if it names the kind
of a sound near it that no other label has; it is repeated if another has, and else invented. The last line is JSON.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.micro.scenes import rooms
from benchmarks.micro.scenes.captions import named_kinds
from benchmarks.micro.scenes.signals import RATE, Samples
from benchmarks.micro.scenes.synthesise import Event, make_scene
from benchmarks.places import RESULTS
from benchmarks.records.benchmark import parser
from benchmarks.records.record import BenchmarkError, failed, make_record, publish
from benchmarks.synthetic.noise import GREEDY
from dasheng_edge.runtime import Captioner
from dasheng_edge.runtime.audio.windows import spans
from dasheng_edge.runtime.caption import Caption
from dasheng_edge.runtime.errors import DashengEdgeError
from dasheng_edge.runtime.subtitles.cue import HOP_S, WINDOW_S, Cue, Window
from dasheng_edge.runtime.subtitles.cues import cues
from dasheng_edge.runtime.subtitles.lint import lint

SCENES, FIRST_SEED = 240, 9_200_000  # far from the seeds of training, and from those that the constants were found on
PAUSE_S = 0.5, 2.5
ROOM_DB = -55.0
NEAR_S = 10.0  # a label further from all sounds of its kind is invented
LENIENT_S = 2.0  # a label repeats what is heard up to here from it
BATCH = 8
MAX_MEDIAN_S, MAX_P90_S = 0.5, 1.5  # what is good enough: the BBC wants subtitles within 1.5 s


@dataclass(frozen=True)
class Way:
    """How subtitles are made."""

    window_s: float
    hop_s: float
    changes: bool
    agree: int

    @property
    def name(self) -> str:
        """In words."""
        placed = "at changes" if self.changes else "at windows"
        return f"{self.window_s:g} s every {self.hop_s:g} s, {placed}, {self.agree} agree"


BEST = Way(WINDOW_S, HOP_S, changes=True, agree=2)
WAYS = [
    Way(30.0, 15.0, changes=False, agree=1), Way(10.0, 5.0, changes=False, agree=1),
    Way(10.0, 5.0, changes=True, agree=1), replace(BEST, changes=False), replace(BEST, agree=1), BEST,
]  # fmt: skip


def long_file(scenes: int, first_seed: int = FIRST_SEED) -> tuple[Samples, list[Event]]:
    """Scenes with pauses between them, float32 [samples] of 16 kHz, and their sounds at times of the whole."""
    rng = np.random.default_rng(first_seed)
    parts: list[Samples] = []
    events: list[Event] = []
    at = 0
    for seed in range(first_seed, first_seed + scenes):
        pause = np.zeros(round(rng.uniform(*PAUSE_S) * RATE), np.float32)
        scene, start_s = make_scene(seed), (at + len(pause)) / RATE
        events += [Event(one.kind, start_s + one.start_s, start_s + one.end_s) for one in scene.events]
        parts += [pause, scene.waveform]
        at += len(pause) + len(scene.waveform)
    waveform = np.concatenate(parts)
    return waveform + rooms.background(rng, len(waveform), ROOM_DB), events


def heard(captioner: Captioner, waveform: Samples, window_s: float, hop_s: float) -> list[Window]:
    """What the model says of each window, and the changes in it."""
    some = list(spans((waveform, RATE), RATE, window_s=window_s, hop_s=hop_s))
    captions = captioner.caption_each((span.audio for span in some), sampling=GREEDY, batch=BATCH, changes=True)
    said = [
        Window(span.start_s, span.end_s, caption.text, caption.changes)
        for span, caption in zip(some, captions, strict=True)
        if isinstance(caption, Caption)
    ]
    if len(said) < len(some):
        raise BenchmarkError(f"{len(some) - len(said)} of {len(some)} windows had no caption; try the bundle on a file")
    return said


def labels_of(shown: Iterable[Cue]) -> list[tuple[float, str]]:
    """When each label is shown first, and the kinds of sound that it names."""
    found = []
    for cue in shown:
        for label in re.findall(r"\[([^]]*)\]", " ".join(cue.lines)):
            if not label.endswith(("continue", "continues")):
                found += [(cue.start_s, kind) for kind in sorted(named_kinds(label))]
    return found


def score(shown: Sequence[tuple[float, str]], events: Sequence[Event]) -> dict[str, Any]:
    """Labels against sounds, the nearest pairs first; errors are from a sound's beginning, in seconds."""
    pairs = sorted(
        (abs(time_s - event.start_s), label, sound)
        for label, (time_s, kind) in enumerate(shown)
        for sound, event in enumerate(events)
        if kind == event.kind and event.start_s - NEAR_S <= time_s <= event.end_s + NEAR_S
    )
    named: dict[int, int] = {}  # sound: label
    errors_s: list[float] = []
    for error_s, label, sound in pairs:
        if sound not in named and label not in named.values():
            named[sound] = label
            errors_s.append(error_s)
    others = [one for label, one in enumerate(shown) if label not in named.values()]
    repeated = sum(
        any(kind == event.kind and event.start_s - LENIENT_S <= time_s <= event.end_s + LENIENT_S for event in events)
        for time_s, kind in others
    )
    return {
        "sounds": len(events), "found": len(named), "labels": len(shown), "repeated": repeated,
        "invented": len(others) - repeated, "median_s": round(float(np.median(errors_s or [np.nan])), 3),
        "p90_s": round(float(np.quantile(errors_s or [np.nan], 0.9)), 3),
    }  # fmt: skip


def measure(bundle: Path, scenes: int, threads: int) -> dict[str, Any]:
    """The score of each way."""
    if shutil.which("espeak-ng") is None:
        raise BenchmarkError("espeak-ng is not installed, which speaks in the scenes; install it")
    waveform, events = long_file(scenes)
    rows: list[dict[str, Any]] = []
    took_s: dict[str, float] = {}
    with Captioner.open(bundle, threads=threads, check_sha256=False) as captioner:
        for window_s, hop_s in dict.fromkeys((way.window_s, way.hop_s) for way in WAYS):
            start = perf_counter()
            said = heard(captioner, waveform, window_s, hop_s)
            took_s[f"{window_s:g}/{hop_s:g}"] = round(perf_counter() - start, 1)
            plain = [replace(window, changes=()) for window in said]
            for way in WAYS:
                if (way.window_s, way.hop_s) == (window_s, hop_s):
                    shown = cues(said if way.changes else plain, agree=way.agree)
                    facts = {"way": way.name, "cues": len(shown), "faults": len(lint(shown))}
                    rows.append(facts | score(labels_of(shown), events))
    return {"scenes": scenes, "audio_s": round(len(waveform) / RATE, 1), "captioning_s": took_s, "ways": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if it cannot be measured, or subtitles are not good enough."""
    options = parser(__doc__, "bundle")
    options.add_argument("--scenes", type=int, default=SCENES)
    given = options.parse_args(arguments)
    try:
        facts = measure(given.bundle, given.scenes, given.threads)
    except (BenchmarkError, DashengEdgeError) as error:
        return failed("subtitles", error)
    for row in facts["ways"]:
        print(", ".join(f"{name} {value}" for name, value in row.items() if name != "way") + f"  {row['way']}")
    record = make_record("subtitles", given.bundle.name, given, facts)
    best = next(row for row in facts["ways"] if row["way"] == BEST.name)
    good = best["faults"] == 0 and best["median_s"] <= MAX_MEDIAN_S and best["p90_s"] <= MAX_P90_S
    publish(record, given.out or RESULTS / "captions" / f"subtitles-{record['model']}.json", best | {"good": good})
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
