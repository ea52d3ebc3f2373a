"""Captions of scenes, and the kinds that a caption names.

The vocabulary is small on purpose: each kind has one word stem that no other phrase uses, so that
`named_kinds` is the exact inverse of every phrasing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.micro.scenes.signals import Rng

# (subject, finite verb, participle) phrasings of each kind; the first is the canonical one.
PHRASES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "alarm": (("an alarm", "beeps", "beeping"), ("an alarm", "goes off", "going off")),
    "applause": (("people", "applaud", "applauding"), ("an audience", "applauds", "applauding")),
    "birds": (("birds", "sing", "singing"), ("birds", "chirp", "chirping")),
    "car horn": (("a car horn", "honks", "honking"), ("a car horn", "sounds", "sounding")),
    "church bell": (("a church bell", "rings", "ringing"), ("a church bell", "tolls", "tolling")),
    "clock ticking": (("a clock", "ticks", "ticking"), ("an old clock", "ticks", "ticking")),
    "crickets": (("crickets", "chirp", "chirping"), ("crickets", "sing", "singing")),
    "dog bark": (("a dog", "barks", "barking"), ("a dog", "is barking", "barking loudly")),
    "dripping water": (("water", "drips", "dripping"), ("water", "is dripping", "dripping down")),
    "drums": (("drums", "play", "playing"), ("drums", "beat", "beating")),
    "electrical hum": (("an electrical device", "hums", "humming"), ("a machine", "hums", "humming")),
    "engine": (("an engine", "runs", "running"), ("an engine", "rumbles", "rumbling")),
    "flute": (("a flute", "plays", "playing"), ("a flute", "plays a melody", "playing a melody")),
    "glass breaking": (("glass", "breaks", "breaking"), ("glass", "shatters", "shattering")),
    "guitar": (("a guitar", "plays", "playing"), ("a guitar", "is strummed", "being strummed")),
    "helicopter": (("a helicopter", "flies", "flying"), ("a helicopter", "hovers", "hovering")),
    "knocking": (("someone", "knocks", "knocking"), ("someone", "knocks on wood", "knocking on wood")),
    "piano": (("a piano", "plays", "playing"), ("a piano", "plays a melody", "playing a melody")),
    "rain": (("rain", "falls", "falling"), ("rain", "pours", "pouring")),
    "sea waves": (("waves", "break", "breaking"), ("sea waves", "roll in", "rolling in")),
    "siren": (("a siren", "wails", "wailing"), ("a siren", "sounds", "sounding")),
    "static": (("static", "hisses", "hissing"), ("static noise", "hisses", "hissing")),
    "telephone": (("a telephone", "rings", "ringing"), ("a telephone", "is ringing", "ringing")),
    "violin": (("a violin", "plays", "playing"), ("a violin", "plays a melody", "playing a melody")),
    "wind": (("wind", "blows", "blowing"), ("wind", "howls", "howling")),
}
SPEECH_VERBS: tuple[tuple[str, str], ...] = (("speaks {}", "speaking {}"), ("talks in {}", "talking in {}"))

# Kind -> regular expression of the words that name it.
STEMS: dict[str, str] = {
    "alarm": r"alarms?",
    "applause": r"applau\w+",
    "birds": r"birds?",
    "car horn": r"horns?",
    "church bell": r"bells?",
    "clock ticking": r"clocks?",
    "crickets": r"crickets?",
    "dog bark": r"dogs?",
    "dripping water": r"drip\w*",
    "drums": r"drums?",
    "electrical hum": r"hum|hums|humming",
    "engine": r"engines?",
    "flute": r"flutes?",
    "glass breaking": r"glass",
    "guitar": r"guitars?",
    "helicopter": r"helicopters?",
    "knocking": r"knock\w*",
    "piano": r"pianos?",
    "rain": r"rain\w*",
    "sea waves": r"waves?",
    "siren": r"sirens?",
    "speech": r"speech|speak\w*|talk\w*",
    "static": r"static",
    "telephone": r"telephones?",
    "violin": r"violins?",
    "wind": r"wind",
}
_PATTERNS = {kind: re.compile(rf"\b(?:{stem})\b", re.IGNORECASE) for kind, stem in STEMS.items()}


@dataclass(frozen=True)
class Heard:
    """One event as a listener would describe it. `overlaps`: sounds together with the event before it."""

    kind: str
    overlaps: bool
    far: bool = False
    woman: bool = False
    language: str = ""


def named_kinds(text: str) -> frozenset[str]:
    """The kinds of sound that a caption or a list of labels names; unknown words are ignored."""
    return frozenset(kind for kind, pattern in _PATTERNS.items() if pattern.search(text))


def clause(event: Heard, choice: int = 0, participle: bool = False, distance: bool = False) -> str:
    """A clause such as "a dog barks" or "a dog barking"; `choice` picks the wording, 0 is canonical."""
    if event.kind == "speech":
        subject = "a woman" if event.woman else "a man"
        verb = SPEECH_VERBS[choice % len(SPEECH_VERBS)][participle].format(event.language)
    else:
        subject, finite, ing = PHRASES[event.kind][choice % len(PHRASES[event.kind])]
        verb = ing if participle else finite
    return f"{subject} {verb} in the distance" if distance and event.far else f"{subject} {verb}"


def canonical(events: Sequence[Heard]) -> str:
    """The one caption that follows from kinds, order and overlap alone, as "rain falls while a dog barks"."""
    text = clause(events[0])
    for before, event in itertools.pairwise(events):
        if event.overlaps:
            text += f" {'and' if before.overlaps else 'while'} {clause(event)}"
        else:
            text += f", followed by {clause(event, participle=True)}"
    return text


def phrasings(rng: Rng, events: Sequence[Heard], count: int = 5) -> tuple[str, ...]:
    """The canonical caption and up to `count - 1` different others, drawn from the templates that fit."""
    texts = [canonical(events)]
    for index in rng.permutation(TEMPLATE_COUNT)[: 2 * count]:
        finite = [clause(event, int(rng.integers(2)), False, True) for event in events]
        ing = [clause(event, int(rng.integers(2)), True, True) for event in events]
        templates = _templates(finite, ing, [event.overlaps for event in events[1:]])
        texts.append(templates[index % len(templates)])
    return tuple(dict.fromkeys(texts))[:count]


TEMPLATE_COUNT = 6


def _templates(finite: list[str], ing: list[str], overlaps: list[bool]) -> list[str]:
    """At least six captions of the same one, two or three clauses; `overlaps[k]` joins clause k and k + 1."""
    if len(finite) == 1:
        return _solo(finite[0], ing[0])
    if all(overlaps):
        return _together(finite, ing)
    if not any(overlaps):
        return _in_turn(finite, ing)
    return _mixed(finite, ing, overlaps[0])


def _solo(finite: str, ing: str) -> list[str]:
    return [
        finite,
        f"the sound of {ing}",
        f"{ing} can be heard",
        f"you can hear {ing}",
        f"in this clip {finite}",
        f"a recording of {ing}",
    ]


def _together(finite: list[str], ing: list[str]) -> list[str]:
    most, last = ", ".join(finite[:-1]), finite[-1]
    return [
        f"{finite[0]} while {' and '.join(finite[1:])}",
        f"{most} and {last} at the same time",
        f"{', '.join(ing[:-1])} and {ing[-1]} at the same time",
        f"{finite[0]} with {' and '.join(ing[1:])}",
        f"at the same time {most} and {last}",
        f"the sound of {', '.join(ing[:-1])} and {ing[-1]} together",
    ]


def _in_turn(finite: list[str], ing: list[str]) -> list[str]:
    middle = "".join(f", next {text}" for text in finite[1:-1])
    return [
        f"first {finite[0]}{middle}, then {finite[-1]}",
        f"{finite[0]}{middle} and then {finite[-1]}",
        f"{ing[0]}{''.join(f', followed by {text}' for text in ing[1:])}",
        f"{finite[0]}{middle}, after that {finite[-1]}",
        f"it begins with {ing[0]}{middle}, then {finite[-1]}",
        f"the sound of {', then '.join(ing)}",
    ]


def _mixed(finite: list[str], ing: list[str], pair_first: bool) -> list[str]:
    if pair_first:
        first, then = f"{finite[0]} while {finite[1]}", finite[2]
        both = f"{ing[0]} and {ing[1]} at the same time"
        return [
            f"{first}, then {then}",
            f"first {first}, then {then}",
            f"{both}, followed by {ing[2]}",
            f"{first} and then {then}",
            f"{first}, after that {then}",
            f"it begins with {both}, then {then}",
        ]
    first, then = finite[0], f"{finite[1]} while {finite[2]}"
    both = f"{ing[1]} and {ing[2]} at the same time"
    return [
        f"{first}, then {then}",
        f"first {first}, then {then}",
        f"{ing[0]}, followed by {both}",
        f"{first} and then {then}",
        f"{first}, after that {then}",
        f"it begins with {ing[0]}, then {then}",
    ]
