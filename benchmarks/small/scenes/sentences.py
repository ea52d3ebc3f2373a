"""What is asked about a scene, and what is answered: whole English sentences of many forms, all of them true."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.micro.scenes.signals import Rng
from benchmarks.micro.scenes.sounds import SPEECH
from benchmarks.small.scenes.kinds import KINDS

CAPTION_PROMPT = "Write an audio caption describing the sound"  # the default of exported bundles
CAPTION_PROMPTS = (
    CAPTION_PROMPT, "Describe the sound.", "What do you hear?", "Describe this recording in one sentence.",
    "What is going on here?",
)  # fmt: skip
LABELS_PROMPT = "Which labels describe the sound?"
COUNT_PROMPT = "How many different sounds are there?"
FIRST_PROMPT = "Which sound comes first?"
LAST_PROMPT = "Which sound comes last?"
LANGUAGE_PROMPT = "What language is spoken?"
NUMBERS = ("no", "one", "two", "three")
NOBODY = "Nobody speaks."

Rows = list[tuple[str, str]]  # prompt and answer


@dataclass(frozen=True)
class Told:
    """One event as a listener would describe it. `overlaps`: sounds together with the event before it."""

    kind: str
    overlaps: bool
    far: bool = False
    woman: bool = False
    language: str = ""


def clause(event: Told, rng: Rng | None, *, participle: bool = False) -> str:
    """A clause such as "a dog barks" or "a dog barking in the distance"; without `rng` the first wording, plainly."""
    choice = 0 if rng is None else int(rng.integers(100))
    if event.kind == SPEECH:
        somebody = "a woman" if event.woman else "a man"
        verb = ("speaks", "speaking", "talks", "talking")[2 * (choice % 2) + participle]
        text = f"{somebody} {verb} {'in ' if choice % 2 else ''}{event.language}"
    else:
        phrases = KINDS[event.kind].phrases
        subject, finite, ing = phrases[choice % len(phrases)]
        text = f"{subject} {ing if participle else finite}"
    return f"{text} in the distance" if rng is not None and event.far else text


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def canonical(events: Sequence[Told]) -> str:
    """The one caption that follows from kinds, order and overlap alone: "Rain falls while a dog barks."."""
    text = clause(events[0], None)
    for before, event in itertools.pairwise(events):
        if event.overlaps:
            text += f" {'and' if before.overlaps else 'while'} {clause(event, None)}"
        else:
            text += f", followed by {clause(event, None, participle=True)}"
    return sentence(text)


def caption(events: Sequence[Told], rng: Rng) -> str:
    """One of many true wordings."""
    finite = [clause(event, rng) for event in events]
    ing = [clause(event, rng, participle=True) for event in events]
    overlaps = [event.overlaps for event in events[1:]]
    if len(events) == 1:
        forms = _solo(finite[0], ing[0])
    elif all(overlaps):
        forms = _together(finite, ing)
    elif not any(overlaps):
        forms = _in_turn(finite, ing)
    elif overlaps[0]:
        both = f"{finite[0]} while {finite[1]}", f"{ing[0]} and {ing[1]} at the same time"
        forms = _in_turn([both[0], finite[2]], [both[1], ing[2]])
    else:
        both = f"{finite[1]} while {finite[2]}", f"{ing[1]} and {ing[2]} at the same time"
        forms = _in_turn([finite[0], both[0]], [ing[0], both[1]])
    return sentence(forms[int(rng.integers(len(forms)))])


def _solo(finite: str, ing: str) -> list[str]:
    return [
        finite, f"the sound of {ing}", f"{ing} can be heard", f"this is a recording of {ing}",
        f"{finite} throughout the clip",
        f"there is the sound of {ing}", f"you can hear {ing}",
    ]  # fmt: skip


def _together(finite: list[str], ing: list[str]) -> list[str]:
    most, last = ", ".join(finite[:-1]), finite[-1]
    return [
        f"{finite[0]} while {' and '.join(finite[1:])}",
        f"{finite[0]} as {' and '.join(finite[1:])}",
        f"{most} and {last} at the same time", f"{finite[0]} together with {' and '.join(ing[1:])}",
        f"the sound of {', '.join(ing[:-1])} and {ing[-1]}",
        f"{', '.join(ing[:-1])} and {ing[-1]} can be heard at once",
    ]  # fmt: skip


def _in_turn(finite: list[str], ing: list[str]) -> list[str]:
    middle = "".join(f", next {text}" for text in finite[1:-1])
    after = ", followed by ".join(ing[1:])
    return [
        f"{finite[0]}{middle}, and then {finite[-1]}", f"{finite[0]}{middle}, then {finite[-1]}",
        f"first {finite[0]}{middle}, then {finite[-1]}",
        f"{ing[0]}, followed by {after}", f"{finite[0]}, followed by {after}",
        f"the recording begins with {ing[0]}{middle} and ends with {ing[-1]}",
        f"{finite[0]}{middle} before {finite[-1]}",
    ]  # fmt: skip


def labels(events: Sequence[Told]) -> str:
    """The kinds in order of onset: "rain; dog bark"."""
    return "; ".join(event.kind for event in events)


def listed(parts: Sequence[str]) -> str:
    """As in "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def count_answer(events: Sequence[Told]) -> str:
    """How many sounds, and which."""
    said = listed([clause(event, None, participle=True) for event in events])
    if len(events) == 1:
        return f"There is one sound: {said}."
    return f"There are {NUMBERS[len(events)]} sounds: {said}."


def language_answer(events: Sequence[Told]) -> str:
    """The language of the speech."""
    return next((f"{event.language}." for event in events if event.kind == SPEECH), NOBODY)


def presence(events: Sequence[Told], rng: Rng) -> tuple[str, str]:
    """Whether there is a certain sound: of the scene, or as often of another kind."""
    present = [event for event in events if event.kind != SPEECH]
    heard = listed([clause(event, None, participle=True) for event in events])
    if present and rng.uniform() < 0.5:
        event = present[int(rng.integers(len(present)))]
        return f"Do you hear {clause(event, None, participle=True)}?", f"Yes, {clause(event, None)}."
    absent = [name for name in KINDS if name != SPEECH and all(name != event.kind for event in events)]
    other = Told(absent[int(rng.integers(len(absent)))], overlaps=False)
    return f"Do you hear {clause(other, None, participle=True)}?", f"No, I hear {heard}."


def questions(events: Sequence[Told], rng: Rng, canonical_share: float) -> Rows:
    """A caption, and one other question that fits the scene."""
    plain = rng.uniform() < canonical_share
    prompt = CAPTION_PROMPT if rng.uniform() < 0.6 else CAPTION_PROMPTS[int(rng.integers(len(CAPTION_PROMPTS)))]
    rows = [(prompt, canonical(events) if plain else caption(events, rng))]
    choice = rng.uniform()
    if choice < 0.3:
        rows.append((LABELS_PROMPT, labels(events)))
    elif choice < 0.45:
        rows.append((COUNT_PROMPT, count_answer(events)))
    elif choice < 0.65:
        rows.append(presence(events, rng))
    elif choice < 0.8 and len(events) > 1 and not any(event.overlaps for event in events):
        first = rng.uniform() < 0.5
        rows.append((FIRST_PROMPT if first else LAST_PROMPT, sentence(clause(events[0 if first else -1], None))))
    elif choice < 0.9:
        rows.append((LANGUAGE_PROMPT, language_answer(events)))
    return rows
