"""What a bundle answers to the clips of a calibration: what its decoder computes for that, and which answers change."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.quant.decoder.imatrix_file import Imatrix
from dasheng_edge.quant.decoder.importance import audio_importance
from dasheng_edge.runtime.bundle.bundle import DECODER, Bundle
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.parts import Parts
from dasheng_edge.runtime.progress import Step, Steps
from dasheng_edge.runtime.text.decoder import Embeddings

from .calibration import Calibration, fitting


def measured_importance(source: Bundle, engine: EngineOptions, calibration: Calibration, steps: Steps) -> Imatrix:
    """The importance matrix of the decoder on the clips.

    Raises what `fitting`, `Parts.open` and `audio_importance` raise.
    """
    step = steps.begin("importance", len(calibration.features), "clips")
    with _asked(source, engine, calibration, step) as (parts, clips):
        limit = source.prompt_facts.max_new_tokens
        imatrix = audio_importance(parts, source.path(DECODER), clips, limit, steps.progress.advance)
    step.end(note=f"{len(imatrix.entries)} matrices")
    return imatrix


def changed_answers(
    source: Bundle, kept: NDArray[np.bool_], engine: EngineOptions, calibration: Calibration, steps: Steps
) -> tuple[int, int]:
    """How many answers to the clips change with the tokens that are kept, bool [tokens]; and how many there are.

    The others are the same: the likeliest token of all that is kept is the likeliest of those that are kept.

    Raises what `fitting`, `Parts.open` and the decoder raise.
    """
    step, changed, count = steps.begin("answers", len(calibration.features), "clips"), 0, 0
    with _asked(source, engine, calibration, step) as (parts, clips):
        limit = source.prompt_facts.max_new_tokens
        for embeddings, prompt in clips:
            asked = parts.prompts.build(prompt)
            parts.decoder.prefill(asked.rows(embeddings), reserve=limit)
            tokens = [*asked.around_audio()[0], *asked.around_audio()[1], *parts.decoder.generate(limit)]
            changed, count = changed + (not kept[tokens].all()), count + 1
            steps.progress.advance(1)
    step.end(note=f"{changed} of {count} change with fewer tokens")
    return changed, count


@contextmanager
def _asked(
    source: Bundle, engine: EngineOptions, calibration: Calibration, step: Step
) -> Generator[tuple[Parts, Iterator[tuple[Embeddings, str | None]]]]:
    """The parts of the bundle, and the clips that fit: embeddings float32 [tokens, llm_dim] and prompt of each."""
    parts = Parts.open(source, engine)
    try:
        room = source.decoder_facts.context_length - source.prompt_facts.max_new_tokens
        clips, left_out = fitting(calibration, parts, room)
        yield (
            parts,
            (
                (parts.audio.projector.embeddings(parts.audio.encoder.patches(features)), prompt)
                for features, prompt in clips
            ),
        )
        for why in left_out:
            step.end(note=f"left out: {why}")
    finally:
        parts.decoder.close()
