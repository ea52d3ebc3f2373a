"""Scenes of one to three sounds with captions, a pure function of a seed.

    python -m benchmarks.micro.scenes.synthesise --seed 7 --count 5 --out DIR   # five FLACs + references.jsonl
    python -m benchmarks.micro.scenes.synthesise --evaluation --out DIR         # the committed evaluation clips

A scene is planned first (kinds, times, levels, words) and rendered second; a plan costs microseconds and is
what the captions follow from.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.micro.scenes import captions, rooms, speech
from benchmarks.micro.scenes.captions import Heard, named_kinds
from benchmarks.micro.scenes.clip_files import Clip, write_clips
from benchmarks.micro.scenes.signals import RATE, Rng, Samples, db, loudness, ramped, stamp
from benchmarks.micro.scenes.sounds import ALWAYS_ENOUGH_S, FAMILIES, KINDS, MAKERS, SPEECH, shortest_s
from benchmarks.micro.scenes.spoken_digits import make_espeak_digits

__all__ = ["KINDS", "Event", "Plan", "Scene", "make_scene", "named_kinds", "plan_scene", "render_scene"]

SHORTEST_SCENE_S, LONGEST_SCENE_S = 1.0, 30.0
SPEECH_SHARE = 0.33  # tried in that many scenes; the shortest ones have no room for it
PLAN, RENDER, PLACE, WORDS = range(4)  # independent random streams of one seed
APART_S = 0.5  # sounds that start together start exactly together; otherwise their order is audible
MASKING_DB = 5.0  # wide-band noise hides its company in every mel band: it is kept this much lower
EVALUATION_SEED = 9_000_000  # far from the seeds of training
EVALUATION_LENGTHS_S = (2.0, 3.0, 4.0, 2.5, 5.0, 3.5, 1.0, 6.0, 2.2, 4.5, 20.0, 3.0, 8.0, 1.5, 2.8, 5.5)
EVALUATION_DIGITS = 10
# Kinds that keep their character when dulled and blurred by distance.
HEARD_FAR = frozenset({"car horn", "church bell", "dog bark", "helicopter", "siren"})


@dataclass(frozen=True)
class Event:
    """One sound of a scene; times in seconds from its start."""

    kind: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Plan:
    """Everything about a scene but its waveform. `levels_db`, `far`: one per event, in onset order."""

    seed: int
    samples: int
    events: tuple[Event, ...]
    levels_db: tuple[float, ...]
    far: tuple[bool, ...]
    woman: bool
    language: str
    captions: tuple[str, ...]

    @property
    def labels(self) -> str:
        """The kinds in order of onset: "rain; dog bark"."""
        return "; ".join(event.kind for event in self.events)


@dataclass(frozen=True)
class Scene:
    """A rendered scene. `waveform`: float32 [samples] in [-1, 1], 16 kHz; `captions[0]` is canonical."""

    seed: int
    waveform: Samples
    events: tuple[Event, ...]
    captions: tuple[str, ...]
    labels: str
    language: str


def make_scene(seed: int, *, duration_s: float | None = None) -> Scene:
    """The scene of a seed; `duration_s` (1 to 30) overrides its random length."""
    return render_scene(plan_scene(seed, duration_s=duration_s))


def plan_scene(seed: int, *, duration_s: float | None = None) -> Plan:
    """Draws kinds, times, levels and captions; renders nothing."""
    if duration_s is not None and not SHORTEST_SCENE_S <= duration_s <= LONGEST_SCENE_S:
        raise ValueError(f"duration_s is {duration_s}: expected 1 to 30 s, or None for a random length.")
    rng = np.random.default_rng([seed, PLAN])
    length_s = _draw_length_s(rng)
    length_s = round(length_s if duration_s is None else duration_s, 2)
    spans = _draw_spans(rng, length_s)
    events = _draw_kinds(rng, spans)
    levels = _draw_levels_db(rng, events)
    far = tuple(event.kind in HEARD_FAR and rng.uniform() < 0.25 for event in events)
    spoken = any(event.kind == SPEECH for event in events)
    language = str(rng.choice(speech.LANGUAGES)) if spoken else "none"
    woman = bool(rng.integers(2))
    return Plan(
        seed=seed,
        samples=round(length_s * RATE),
        events=events,
        levels_db=levels,
        far=far,
        woman=woman,
        language=language,
        captions=_write_captions(seed, events, far, woman, language),
    )


def _draw_length_s(rng: Rng) -> float:
    """Log-scaled between 1 and 30 s, the middle favoured, a few of any length: mean 6.3 s, median 5.1 s."""
    part = rng.uniform() if rng.uniform() < 0.06 else rng.beta(3.2, 3.4)
    return float(LONGEST_SCENE_S**part)


def _draw_spans(rng: Rng, length_s: float) -> list[tuple[float, float]]:
    """(start, end) of one to three events in onset order, in turn or at once, within `length_s`."""
    most = 1 if length_s < 1.4 else 2 if length_s < 3.0 else 3
    count = min(int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2])), most)
    layout = str(rng.choice(["turn", "once"] if count < 3 else ["turn", "once", "pair first", "pair last"]))
    lead, trail = (rng.uniform(0, 0.12) * length_s * rng.integers(2) for _ in range(2))
    start, end = min(lead, 2.0), length_s - min(trail, 2.0)
    slots = {"turn": count, "once": 1}.get(layout, 2)
    if (end - start) / slots < 0.9:
        return [(start, end)]
    cuts = np.linspace(start, end, slots + 1)
    cuts[1:-1] += rng.uniform(-0.2, 0.2, slots - 1) * (end - start) / slots
    gap = rng.uniform(0.0, 0.15)
    bounds = [(float(a), float(b) - gap) for a, b in itertools.pairwise(cuts)]
    if min(b - a for a, b in bounds) < ALWAYS_ENOUGH_S:
        return [(start, end)]
    if layout == "once":
        return _at_once(rng, bounds[0], count)
    if layout == "pair first":
        return [*_at_once(rng, bounds[0], 2), bounds[1]]
    if layout == "pair last":
        return [bounds[0], *_at_once(rng, bounds[1], 2)]
    return bounds


def _at_once(rng: Rng, span: tuple[float, float], count: int) -> list[tuple[float, float]]:
    """`count` events that overlap by far more than half, starting together or clearly one after another."""
    start, end = span
    spans, late = [span], 0.0
    for _ in range(count - 1):
        step = rng.uniform(APART_S, 0.3 * (end - start)) if 0.3 * (end - start) > APART_S else 0.0
        late += step * int(rng.integers(2)) / (count - 1)
        late = late if late >= APART_S else 0.0
        spans.append((start + late, end))
    return spans


def _draw_kinds(rng: Rng, spans: list[tuple[float, float]]) -> tuple[Event, ...]:
    """Different kinds that fit their spans; long spans favour those that need them: all are as common."""
    spoken = int(rng.integers(len(spans))) if rng.uniform() < SPEECH_SHARE else -1
    chosen: list[str] = [""] * len(spans)
    if spoken >= 0 and spans[spoken][1] - spans[spoken][0] >= shortest_s(SPEECH):
        chosen[spoken] = SPEECH
    for index, (start, end) in enumerate(spans):
        if not chosen[index]:
            barred = {SPEECH, *chosen}.union(*(family for family in FAMILIES if family & set(chosen)))
            able = [kind for kind in KINDS if kind not in barred and shortest_s(kind) <= end - start + 1e-6]
            weights = np.array([shortest_s(kind) ** 0.6 for kind in able])
            chosen[index] = able[int(rng.choice(len(able), p=weights / weights.sum()))]
    timed = zip(chosen, spans, strict=True)
    events = [Event(kind, round(start, 3), round(end, 3)) for kind, (start, end) in timed]
    return tuple(sorted(events, key=lambda event: (event.start_s, event.kind)))


def _draw_levels_db(rng: Rng, events: tuple[Event, ...]) -> tuple[float, ...]:
    """One level per event: 0 to -15 dB in turn; 0 to -8 dB at once, where wide-band kinds step back."""
    together = any(overlapping(a, b) for a, b in itertools.pairwise(events))
    levels = rng.uniform(-8.0 if together else -15.0, 0.0, len(events))
    levels[rng.integers(len(events))] = 0.0
    if together:
        levels -= [MASKING_DB if event.kind in FAMILIES[0] else 0.0 for event in events]
    return tuple(float(level) for level in levels)


def _write_captions(
    seed: int, events: tuple[Event, ...], far: tuple[bool, ...], woman: bool, language: str
) -> tuple[str, ...]:
    overlaps = [False] + [overlapping(a, b) for a, b in itertools.pairwise(events)]
    heard = [
        Heard(event.kind, together, distant, woman, language)
        for event, together, distant in zip(events, overlaps, far, strict=True)
    ]
    return captions.phrasings(np.random.default_rng([seed, WORDS]), heard)


def overlapping(first: Event, second: Event) -> bool:
    """Whether two events share more than half of the shorter one: "while" rather than "followed by"."""
    shared = min(first.end_s, second.end_s) - max(first.start_s, second.start_s)
    return shared > 0.5 * min(first.end_s - first.start_s, second.end_s - second.start_s)


def render_scene(plan: Plan) -> Scene:
    """Renders each event in its place, mixes them over background noise and sets the level."""
    mix = np.zeros(plan.samples, np.float32)
    for index, event in enumerate(plan.events):
        stamp(mix, round(event.start_s * RATE), _render_event(plan, index))
    rng = np.random.default_rng([plan.seed, PLACE])
    mix += rooms.background(rng, plan.samples, rng.uniform(-60, -35))
    waveform = rooms.peak_normalised(mix, rng.uniform(-20, -1))
    return Scene(plan.seed, waveform, plan.events, plan.captions, plan.labels, plan.language)


def _render_event(plan: Plan, index: int) -> Samples:
    """Event `index` with its loud frames at its level, so that events compare by what is heard."""
    event = plan.events[index]
    rng = np.random.default_rng([plan.seed, RENDER, index])
    n = round((event.end_s - event.start_s) * RATE)
    dry = speech.talk(rng, n, plan.language, plan.woman) if event.kind == SPEECH else MAKERS[event.kind](rng, n)
    place = rooms.far(rng) if plan.far[index] else rooms.near(rng)
    wet = ramped(rooms.heard_from(rng, place, dry), 0.005, 0.03)
    distance_db = -6.0 if plan.far[index] else 0.0
    return wet * np.float32(db(plan.levels_db[index] + distance_db) / max(loudness(wet), 1e-6))


def evaluation_plans() -> list[Plan]:
    """The committed scenes: from one seed on, each with a kind heard less than twice or a new language."""
    plans: list[Plan] = []
    heard: Counter[str] = Counter()
    wanted = Counter(dict.fromkeys(KINDS, 2) | dict.fromkeys(speech.LANGUAGES, 1))
    for seed in itertools.count(EVALUATION_SEED):
        plan = plan_scene(seed, duration_s=EVALUATION_LENGTHS_S[len(plans) % len(EVALUATION_LENGTHS_S)])
        brings = Counter([plan.language, *(event.kind for event in plan.events)])
        if any(heard[name] < wanted[name] for name in brings):
            plans.append(plan)
            heard += brings
        if wanted <= heard:
            break
    return plans


def scene_clips(plans: Sequence[Plan]) -> Iterator[Clip]:
    """Renders plans one at a time."""
    for plan in plans:
        yield Clip(
            f"scene_{plan.seed}",
            render_scene(plan).waveform,
            {
                "seed": plan.seed,
                "captions": list(plan.captions),
                "kinds": [event.kind for event in plan.events],
                "labels": plan.labels,
                "language": plan.language,
            },
        )


def digit_clips(seeds: Sequence[int]) -> Iterator[Clip]:
    """Spoken digit strings, with their transcript beside what a caption would say."""
    for seed in seeds:
        clip = make_espeak_digits(seed)
        woman = clip.speaker.rpartition("+")[2] in speech.WOMEN
        caption = captions.canonical([Heard(SPEECH, overlaps=False, woman=woman, language="English")])
        yield Clip(
            f"digits_{seed}",
            clip.waveform,
            {
                "seed": seed,
                "captions": [caption],
                "kinds": [SPEECH],
                "labels": SPEECH,
                "language": "English",
                "digits": clip.digits,
                "source": clip.source,
                "speaker": clip.speaker,
            },
        )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Writes synthetic scenes as FLAC with references.jsonl.")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first scene (default: 0)")
    parser.add_argument("--count", type=int, default=5, help="number of scenes, one seed each (default: 5)")
    parser.add_argument("--evaluation", action="store_true", help="the committed evaluation clips instead")
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 when all is written."""
    options = parse(arguments)
    if options.evaluation:
        digits = digit_clips(range(EVALUATION_SEED, EVALUATION_SEED + EVALUATION_DIGITS))
        clips = itertools.chain(scene_clips(evaluation_plans()), digits)
    else:
        seeds = range(options.seed, options.seed + options.count)
        clips = itertools.chain(scene_clips([plan_scene(seed) for seed in seeds]))
    size = write_clips(options.out, clips)
    print(f"{options.out}: {len(list(options.out.glob('*.flac')))} clips, {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
