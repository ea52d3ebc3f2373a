"""What the figures of a comparison cannot say, in sentences for its report."""

from __future__ import annotations

from collections.abc import Sequence

from dasheng_edge.runtime.audio.clips import ClipSet
from dasheng_edge.runtime.bundle.manifest import DecoderFacts

from .bootstrap import COVERED, MIN_CLIPS
from .record import Cost

BUSY = 0.1  # share of the machine that others use, above which speeds are no longer told apart
MIN_PARAMETERS = 100_000_000  # parameters; below, what a model says about the 7B is little


def general_limits(decoder: DecoderFacts, clips: int) -> tuple[str, ...]:
    """What no comparison of so many clips with this decoder can say."""
    said = [
        (
            f"Intervals cover the chance of drawing these {clips} clips from clips like them. They say nothing about "
            "other sounds, languages or prompts."
        ),
        (
            "Answers are compared with those of the reference bundle, which has errors of its own; a candidate may be "
            "right where the reference is wrong, and counts as different."
        ),
        (
            "Same top-1 is no promise: text models of 8 B parameters keep 97.7 % in Q8_0, 96.0 % in Q6_K and 91.9 % in "
            "Q4_K_M (llama.cpp's figures for Llama 3), and nothing here suggests that audio models keep more in "
            "general."
        ),
        "ROUGE-L and CIDEr-D here use a simple tokeniser and are not comparable with published scores.",
        "Costs are those of this machine while this report was made.",
    ]
    if clips < MIN_CLIPS:
        held = ", ".join(f"{share} % with {many}" for many, share in COVERED.items() if share)
        said.append(
            f"{clips} clip{'s are' if clips > 1 else ' is'} few: intervals that are called 95 % ones are too narrow "
            f"then. In simulations with skewed values they held the truth never with 1 clip, {held}."
        )
    if decoder.parameters < MIN_PARAMETERS:
        said.append(
            f"This decoder has {decoder.parameters / 1e6:.1f} M parameters, a vocabulary of {decoder.vocab_size} and a "
            "narrow task. Which order recipes come in may carry over to the 7B; how much each loses does not, since "
            "small models lose more by coarse types, and sure answers of one pattern hide losses that free text shows."
        )
    return tuple(said)


def calibration_limits(clips: ClipSet, calibration: ClipSet | None) -> tuple[str, ...]:
    """Whether candidates were calibrated on what they are compared on."""
    shared = clips.shared_with(calibration) if calibration else 0
    said = (
        f"{shared} of the {len(clips.clips)} clips that were compared hold audio that was calibrated on, too: "
        "candidates that were made by it look better here than they are on other audio."
    )
    return (said,) if shared else ()


def machine_limits(costs: Sequence[Cost], threads: tuple[int, int]) -> tuple[str, ...]:
    """What this machine could not tell; `threads` are those of the comparison and of its noise floor."""
    said = []
    busiest = max((cost.others_share or 0.0 for cost in costs), default=0.0)
    if busiest > BUSY:
        said.append(
            f"Other programs used up to {busiest:.0%} of the machine while speeds were measured: they cannot be "
            "compared. The same command on an idle machine measures them anew, and only them."
        )
    if threads[0] == threads[1]:
        said.append(
            f"The noise floor says nothing: this machine has one processor, and {threads[0]} thread computes the same "
            "twice."
        )
    return tuple(said)
