"""Checks of a decoder that was just written against what it was made from."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dasheng_edge.quant.decoder.gguf_file import tensor_bytes
from dasheng_edge.quant.decoder.types import WORST_MATRIX, DecoderTolerance
from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.bundle.golden import AUDIO_MARK, GoldenText
from dasheng_edge.runtime.bundle.manifest import PromptFacts
from dasheng_edge.runtime.deviation import logits_relative_rms
from dasheng_edge.runtime.engine_options import EngineOptions, resolve_here
from dasheng_edge.runtime.errors import ExportError, PromptError
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.text.prompt import PromptBuilder

from .decoder import DecoderReport
from .residency import pages_handed_back


def check_tensors(report: DecoderReport, limits: DecoderTolerance) -> None:
    """Each matrix by itself must be close to its source, and vectors must be equal to theirs.

    Raises:
        ExportError: a matrix or vector is not.
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
            got = PromptBuilder(decoder.chat_template, facts, decoder).build().ids(AUDIO_MARK)
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


def golden_logits_error(decoder_path: Path, texts: Sequence[GoldenText]) -> float:
    """Largest error of the first logits between llama.cpp and the reference."""
    errors = []
    with _opened(decoder_path) as decoder:
        for text in texts:
            decoder.prefill(text.segments)
            errors.append(logits_relative_rms(decoder.logits(), text.logits))
    return float(np.max(errors))


@contextmanager
def _opened(decoder_path: Path) -> Generator[Decoder]:
    """The decoder in llama.cpp, in as little memory as it can do with."""
    decoder: Decoder | None = None
    try:
        # llama.cpp keeps what lies between the tensors' ends mapped, until it is closed.
        with pages_handed_back(decoder_path, *tensor_bytes(decoder_path)):
            decoder = Decoder.open(decoder_path, resolve_here(EngineOptions(weights="mapped")))
            yield decoder
    finally:
        if decoder is not None:
            decoder.close()
