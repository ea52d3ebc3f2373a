"""Scenes of one to three sounds, a pure function of a seed; most of them are 2 to 5 s long."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from benchmarks.micro.scenes import rooms, speech
from benchmarks.micro.scenes.signals import RATE, Rng, Samples, db, loudness, ramped, stamp
from benchmarks.micro.scenes.sounds import FAMILIES as MICRO_FAMILIES
from benchmarks.micro.scenes.sounds import SPEECH
from benchmarks.micro.scenes.synthesise import HEARD_FAR, MASKING_DB, overlapping
from benchmarks.micro.scenes.synthesise import Event as MicroEvent
from benchmarks.small.scenes.kinds import KINDS, SPEAKERS
from benchmarks.small.scenes.recordings import Recorded
from benchmarks.small.scenes.sentences import Told

PLAN, RENDER, PLACE = range(3)  # independent random streams of one seed
SPEECH_SHARE = 0.2
REAL_VOICE_SHARE = 0.5  # of the speech in the languages that have one
FAR_SHARE = 0.15  # of the kinds that keep their character in the distance
FAR_KINDS = HEARD_FAR | {"birds", "cow", "crow", "drums", "fireworks", "horse", "owl", "thunder", "train"}
# Kinds of one family mask each other beyond recognition: a scene has one of each family at most.
NOISES = MICRO_FAMILIES[0] | {"fire", "running water", "vacuum cleaner", "saw", "cymbal"}
LOW = MICRO_FAMILIES[1] | {"thunder", "train", "vacuum cleaner"}
FAMILIES = (NOISES, LOW)


@dataclass(frozen=True)
class Scene:
    """A rendered scene. `waveform`: float32 [samples] in [-1, 1], 16 kHz; `events` and `told` in onset order."""

    waveform: Samples
    events: tuple[MicroEvent, ...]
    told: tuple[Told, ...]


def make_scene(seed: int) -> Scene:
    """The scene of a seed."""
    rng = np.random.default_rng([seed, PLAN])
    length_s = _draw_length_s(rng)
    spans = _draw_spans(rng, length_s)
    events = tuple(sorted(_draw_kinds(rng, spans), key=lambda event: (event.start_s, event.kind)))
    overlaps = [False, *(overlapping(a, b) for a, b in itertools.pairwise(events))]
    woman, language = bool(rng.integers(2)), str(rng.choice(speech.LANGUAGES))
    told = [
        Told(event.kind, together, event.kind in FAR_KINDS and rng.uniform() < FAR_SHARE, woman, language)
        for event, together in zip(events, overlaps, strict=True)
    ]
    if language in SPEAKERS and rng.uniform() < REAL_VOICE_SHARE:
        told = [Told(one.kind, one.overlaps, one.far, True, language) for one in told]
        speaker: Recorded | None = SPEAKERS[language]
    else:
        speaker = None
    levels = rng.uniform(-8.0 if any(overlaps) else -14.0, 0.0, len(events))
    levels[rng.integers(len(events))] = 0.0
    mix = np.zeros(round(length_s * RATE), np.float32)
    for index, (event, one) in enumerate(zip(events, told, strict=True)):
        level = levels[index] - (MASKING_DB if any(overlaps) and event.kind in NOISES else 0.0)
        sound = _render(np.random.default_rng([seed, RENDER, index]), event, one, speaker, float(level))
        stamp(mix, round(event.start_s * RATE), sound)
    return Scene(_placed(np.random.default_rng([seed, PLACE]), mix), events, tuple(told))


def held_out_clip(kind: str, source: int, seed: int) -> Scene:
    """A recording that no training hears, alone, as it is: 2 to 5 s of it."""
    rng = np.random.default_rng([seed, source])
    length_s = round(float(rng.uniform(2, 5)), 2)
    sound = KINDS[kind].held_out[source](rng, round(length_s * RATE))
    event, told = MicroEvent(kind, 0.0, length_s), Told(kind, overlaps=False, language="Russian")
    return Scene(rooms.peak_normalised(sound, rng.uniform(-12, -1)), (event,), (told,))


def _draw_length_s(rng: Rng) -> float:
    part = rng.uniform()
    if part < 0.8:
        return round(float(rng.uniform(2, 5)), 2)
    return round(float(rng.uniform(1, 2) if part < 0.88 else rng.uniform(5, 10)), 2)


def _draw_spans(rng: Rng, length_s: float) -> list[tuple[float, float]]:
    """(start, end) of the events: one after another, at once, or a pair and one."""
    most = 1 if length_s < 1.8 else 2 if length_s < 3.2 else 3
    count = min(int(rng.choice([1, 2, 3], p=[0.4, 0.42, 0.18])), most)
    start, end = (
        rng.uniform(0, 0.08) * length_s * rng.integers(2),
        length_s - rng.uniform(0, 0.08) * length_s * rng.integers(2),
    )
    layout = str(rng.choice(["turn", "once"] if count < 3 else ["turn", "once", "pair first", "pair last"]))
    slots = {"turn": count, "once": 1}.get(layout, 2)
    cuts = np.linspace(start, end, slots + 1)
    cuts[1:-1] += rng.uniform(-0.15, 0.15, slots - 1) * (end - start) / slots
    bounds = [(float(a), float(b) - rng.uniform(0, 0.1)) for a, b in itertools.pairwise(cuts)]
    if min(b - a for a, b in bounds) < 0.8:
        return [(float(start), float(end))]
    many = {"once": [count], "pair first": [2, 1], "pair last": [1, 2]}.get(layout, [1] * slots)
    return [span for span, times in zip(bounds, many, strict=True) for _ in range(times)]


def _draw_kinds(rng: Rng, spans: list[tuple[float, float]]) -> list[MicroEvent]:
    spoken = int(rng.integers(len(spans))) if rng.uniform() < SPEECH_SHARE else -1
    chosen: list[str] = []
    for index, (start, end) in enumerate(spans):
        barred = set(chosen).union(*(family for family in FAMILIES if family & set(chosen)))
        able = [
            name for name, kind in KINDS.items() if name not in barred | {SPEECH} and kind.shortest_s <= end - start
        ]
        if index == spoken and end - start >= KINDS[SPEECH].shortest_s:
            chosen.append(SPEECH)
        else:
            weights = np.array([KINDS[name].shortest_s ** 0.6 for name in able])  # long spans for those that need them
            chosen.append(able[int(rng.choice(len(able), p=weights / weights.sum()))])
    return [MicroEvent(name, round(start, 3), round(end, 3)) for name, (start, end) in zip(chosen, spans, strict=True)]


def _render(rng: Rng, event: MicroEvent, told: Told, speaker: Recorded | None, level_db: float) -> Samples:
    """The event with its loud frames at its level."""
    n = round((event.end_s - event.start_s) * RATE)
    if event.kind != SPEECH:
        makers = KINDS[event.kind].makers
        dry = makers[int(rng.integers(len(makers)))](rng, n)
    elif speaker is not None:
        dry = speaker(rng, n)
    else:
        dry = speech.talk(rng, n, told.language, told.woman)
    wet = ramped(rooms.heard_from(rng, rooms.far(rng) if told.far else rooms.near(rng), dry), 0.005, 0.03)
    return wet * np.float32(db(level_db - (6.0 if told.far else 0.0)) / max(loudness(wet), 1e-6))


def _placed(rng: Rng, mix: Samples) -> Samples:
    return rooms.peak_normalised(mix + rooms.background(rng, len(mix), rng.uniform(-60, -32)), rng.uniform(-20, -1))
