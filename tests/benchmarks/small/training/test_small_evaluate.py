"""Scores of answers that are known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.micro.scenes.synthesise import Event
from benchmarks.small.scenes.scenes import Scene
from benchmarks.small.scenes.sentences import (
    CAPTION_PROMPT,
    LABELS_PROMPT,
    LANGUAGE_PROMPT,
    Told,
    canonical,
    labels,
    language_answer,
)
from benchmarks.small.training.evaluate import TITLES, Scores, card_block, score


def scene(*kinds: str) -> Scene:
    told = tuple(Told(kind, overlaps=False, language="French") for kind in kinds)
    return Scene(np.zeros(16_000, np.float32), tuple(Event(kind, 0.0, 1.0) for kind in kinds), told)


SCENES = [scene("rain", "dog bark"), scene("speech"), scene("cow")]


def perfect(asked: Scene, prompt: str) -> str:
    answers = {CAPTION_PROMPT: canonical, LABELS_PROMPT: labels, LANGUAGE_PROMPT: language_answer}
    return answers[prompt](asked.told)


def test_right_answers_score_one_and_the_card_shows_them() -> None:
    scores, captions = score(perfect, SCENES, SCENES[2:])
    assert scores == Scores(*[1.0] * len(TITLES))
    assert captions == {"cow": ["A cow moos."]}
    block = card_block({"bundle": scores}, captions, 3)
    assert block.count("| 100.0 % |") == len(TITLES)
    assert "| cow | A cow moos. |" in block


def test_wrong_answers_score_what_they_deserve() -> None:
    scores, _ = score(lambda _, prompt: "Rain falls." if prompt == CAPTION_PROMPT else "rain", SCENES, SCENES[2:])
    assert scores.event_f1 == pytest.approx(2 * 1 / (3 + 4))  # rain is named thrice, once rightly; four sounds
    assert scores.label_hit == scores.caption_hit == scores.language == 0
    assert scores.sentences == 1
