"""How far a decoder may be from its source, by type, and the checks of a written one against it."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dasheng_edge.runtime.bundle import DECODER, PromptFacts
from dasheng_edge.runtime.decoder import Decoder
from dasheng_edge.runtime.errors import ExportError, PromptError
from dasheng_edge.runtime.prompt import Audio, PromptBuilder
from dasheng_edge.runtime.verify import relative_rms

from .decoder_gguf import DecoderReport
from .gguf_file import tensor_bytes
from .options import DecoderType
from .reference_decoder import AUDIO_MARK
from .residency import few_mapped_pages


@dataclass(frozen=True)
class DecoderTolerance:
    """What a decoder type may cost, as RMS of the difference over RMS of the reference."""

    weights: float  # over all matrices; one alone may cost WORST_MATRIX times that
    logits: float


# Measured on two models: a tiny one with random weights, and the trained micro model (bfloat16), each with and
# without an adapter, three clips each; the largest values, for BF16, F16, Q8_0, Q6_K, Q5, Q4, Q3_K and Q2_K:
#   weights, random   1.7e-3  2.1e-4  0.0053  0.018  0.042  0.085  0.15  0.29   tolerance: 1.5 times that
#   weights, trained  1.0e-3  1.3e-4  0.0050  0.017  0.032  0.062  0.11  0.19   (some in finer types)
#   worst matrix      1.7e-3  2.1e-4  0.0055  0.018  0.044  0.088  0.15  0.30   tolerance: 2.2 times that
#   logits, random    0.0085  0.0021  0.025   0.064  0.15   0.29   0.58  0.79   tolerance: 1.7 to 2.4; last 1.2, 1.01
#   logits, trained   0.0014  5e-4    0.014   0.029  0.046  0.20   0.13  0.16   tolerance: 2.5 (Q4) to 14 times
# Logits that are zero lose 1 and unrelated ones 1.4, so no tolerance may come near; it is why random weights have
# almost no room in Q2_K.
DECODER_TOLERANCES: Mapping[DecoderType, DecoderTolerance] = {
    "F32": DecoderTolerance(1e-7, 1e-3),
    "BF16": DecoderTolerance(2.5e-3, 0.02),
    "F16": DecoderTolerance(3.2e-4, 0.005),
    "Q8_0": DecoderTolerance(0.008, 0.05),
    "Q6_K": DecoderTolerance(0.027, 0.15),
    **dict.fromkeys(("Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0"), DecoderTolerance(0.065, 0.3)),
    **dict.fromkeys(("Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0"), DecoderTolerance(0.13, 0.5)),
    **dict.fromkeys(("Q3_K_L", "Q3_K_M", "Q3_K_S"), DecoderTolerance(0.23, 0.7)),
    "Q2_K": DecoderTolerance(0.45, 0.8),
}
WORST_MATRIX = 1.5  # times the tolerance of all, which is 0.68 for Q2_K: one of zeros costs 1
# A token may differ where the reference's preference is within what the logits' tolerance explains: four
# standard deviations of a logit's error, which covers 16 tokens of three clips. At most two of the logits
# themselves, so that this says something for coarse types, too; 0.99 is the largest seen (random model, Q2_K).
TOKEN_MARGIN_DEVIATIONS, LARGEST_TOKEN_MARGIN = 4.0, 2.0


def token_margin(logits_std: float, kind: DecoderType) -> float:
    """Largest preference of the reference that a type may overturn, in logits."""
    deviations = min(TOKEN_MARGIN_DEVIATIONS * DECODER_TOLERANCES[kind].logits, LARGEST_TOKEN_MARGIN)
    return float(f"{deviations * logits_std:.3g}")


def check_tensors(report: DecoderReport, limits: DecoderTolerance) -> None:
    """No matrix may hide behind the others, and vectors are stored as they are.

    Raises:
        ExportError: one does.
    """
    if not report.worst_error <= WORST_MATRIX * limits.weights:
        raise ExportError(
            f"{report.worst_matrix} in {DECODER} differs from its source by {report.worst_error:.3g} relative RMS, "
            f"expected at most {WORST_MATRIX * limits.weights:.3g}; nothing was written. Try another --decoder"
        )
    if report.vector_error != 0:
        raise ExportError(
            f"norms and biases in {DECODER} differ from their source by {report.vector_error:.3g} relative RMS, "
            "expected none, since they are stored in F32; nothing was written. Use the versions of constraints.txt"
        )


def check_prompt(decoder_path: Path, name: str, facts: PromptFacts, wanted: Sequence[int]) -> None:
    """The runtime must render the default prompt to the tokens that transformers renders it to.

    Raises:
        ExportError: it does not, or cannot.
    """
    with _opened(decoder_path) as decoder:
        try:
            got: list[int] = []
            for segment in PromptBuilder(decoder.chat_template, facts, decoder).build():
                got += [AUDIO_MARK] if isinstance(segment, Audio) else segment.tokens
            difference = "" if got == list(wanted) else f"{_shown(decoder, got)} instead of {_shown(decoder, wanted)}"
        except PromptError as error:
            difference = f"fails ({error}) instead of giving {_shown(decoder, wanted)}"
    if difference:
        raise ExportError(
            f"the chat template of {name} renders differently in the runtime than in transformers: {difference}; "
            "nothing was written. Take out of the template what only transformers knows, or what depends on the text"
        )


def _shown(decoder: Decoder, prompt: Sequence[int]) -> str:
    """A prompt's text, control tokens included, with its ids."""
    names = {index: token for token, index in decoder.control_tokens.items()} | {AUDIO_MARK: "{audio}"}
    text = "".join(names[i] if i in names else decoder.piece(i).decode("utf-8", "replace") for i in prompt)
    return f"{text!r} {list(prompt)}"


def golden_logits_error(decoder_path: Path, vectors: Mapping[str, npt.NDArray[Any]]) -> float:
    """Largest error of the first logits between llama.cpp and the reference."""
    errors = []
    with _opened(decoder_path) as decoder:
        for i in range(len(vectors["names"])):
            decoder.prefill(golden_segments(vectors[f"prompt_{i}"].tolist(), vectors[f"embeddings_{i}"]))
            errors.append(logits_error(decoder.logits(), vectors[f"logits_{i}"]))
    return float(np.max(errors))


@contextmanager
def _opened(decoder_path: Path) -> Generator[Decoder]:
    """The decoder in llama.cpp, in as little memory as it can do with."""
    decoder: Decoder | None = None
    try:
        # llama.cpp keeps what lies between the tensors' ends mapped, until it is closed.
        with few_mapped_pages(decoder_path, *tensor_bytes(decoder_path)):
            decoder = Decoder.open(decoder_path, repack=False)
            yield decoder
    finally:
        if decoder is not None:
            decoder.close()


def logits_error(got: npt.NDArray[np.float32], want: npt.NDArray[np.float32]) -> float:
    """Relative RMS difference of two rows of logits [vocab].

    Without their mean: a constant added to all logits changes nothing that is computed from them.
    """
    return relative_rms(got - got.mean(), want - want.mean())


def golden_segments(
    prompt: Sequence[int], audio: npt.NDArray[np.float32]
) -> list[tuple[int, ...] | npt.NDArray[np.float32]]:
    """A golden prompt as what `Decoder.prefill` takes."""
    place = list(prompt).index(AUDIO_MARK)
    return [tuple(prompt[:place]), audio, tuple(prompt[place + 1 :])]
