"""Whatever is said about a scene names the kinds that sound in it, and no others."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.micro.scenes.sounds import SPEECH
from benchmarks.micro.scenes.speech import LANGUAGES
from benchmarks.small.scenes import sentences
from benchmarks.small.scenes.kinds import KINDS, named_kinds
from benchmarks.small.scenes.sentences import Told
from benchmarks.small.training.evaluate import is_sentence


@pytest.mark.parametrize("name", [name for name in KINDS if name != SPEECH])
def test_each_phrase_and_label_names_its_kind_alone(name: str) -> None:
    assert named_kinds(name) == {name}
    for subject, finite, participle in KINDS[name].phrases:
        assert named_kinds(f"{subject} {finite}") == {name}
        assert named_kinds(f"{subject} {participle}") == {name}


def drawn(rng: np.random.Generator) -> list[Told]:
    """One to three different kinds, in turn, at once, or a pair and one."""
    count = int(rng.integers(1, 4))
    kinds = rng.choice(list(KINDS), count, replace=False)
    language, woman = str(rng.choice(LANGUAGES)), bool(rng.integers(2))
    overlaps = [False, *(bool(rng.integers(2)) for _ in range(count - 1))]
    return [
        Told(str(kind), together, bool(rng.integers(2)), woman, language)
        for kind, together in zip(kinds, overlaps, strict=True)
    ]


def test_captions_are_sentences_that_name_what_sounds() -> None:
    rng, texts = np.random.default_rng(0), set[str]()
    for _ in range(400):
        events = drawn(rng)
        known = {event.kind for event in events}
        for text in (sentences.canonical(events), sentences.caption(events, rng)):
            assert named_kinds(text) == known, text
            assert is_sentence(text), text
            texts.add(text)
        for text in (sentences.labels(events), sentences.count_answer(events)):
            assert named_kinds(text) == known, text
    assert len(texts) > 600  # template variety


def test_other_answers_are_true() -> None:
    rng = np.random.default_rng(1)
    for _ in range(400):
        events = drawn(rng)
        known = {event.kind for event in events}
        for prompt, answer in sentences.questions(events, rng, canonical_share=0.5):
            if prompt.startswith("Do you hear"):
                asked = named_kinds(prompt)
                present = asked.issubset(known)
                assert answer.startswith("Yes" if present else "No")
                assert named_kinds(answer) == (asked if present else known)
            if prompt == sentences.FIRST_PROMPT:
                assert named_kinds(answer) == {events[0].kind}
            if prompt == sentences.LAST_PROMPT:
                assert named_kinds(answer) == {events[-1].kind}
            if prompt == sentences.LANGUAGE_PROMPT:
                assert (answer == sentences.NOBODY) == (SPEECH not in known)


@pytest.mark.parametrize("text", ["a dog barks.", "A dog barks", "A dog dog dog barks.", "", "A dog barks. And a cat."])
def test_what_is_no_sentence(text: str) -> None:
    assert not is_sentence(text)
