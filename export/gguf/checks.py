"""Checks of a decoder that was just written against what it was made from."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dasheng_edge.quant.decoder.activations import Activations, instead_of, watched
from dasheng_edge.quant.decoder.gguf_file import tensor_bytes
from dasheng_edge.quant.decoder.types import WORST_MATRIX, DecoderTolerance, DecoderType
from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.bundle.golden import AUDIO_MARK, GoldenText
from dasheng_edge.runtime.bundle.manifest import PromptFacts
from dasheng_edge.runtime.engine_options import EngineOptions, resolve_here
from dasheng_edge.runtime.errors import ExportError, PromptError
from dasheng_edge.runtime.prompt.prompt import PromptBuilder
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.verify import AttentionError, attention_error

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


@dataclass(frozen=True)
class DecoderCheck:
    """What llama.cpp makes of the golden texts."""

    attention: AttentionError
    activations: Activations
    kind: DecoderType

    @property
    def error(self) -> float:
        """Relative RMS of the first logits in the way in which the runtime attends."""
        return self.attention.exact if self.kind == "F32" else self.attention.default

    @property
    def note(self) -> str:
        """The figures in words."""
        exact, default = f"{self.attention.exact:.1e}", f"{self.attention.default:.1e}"
        return (
            f"first logits of {DECODER} in llama.cpp, {exact} with keys and values in F32 and no flash attention, "
            f"{default} by default; largest activation {self.activations.highest:.3g}"
        )

    @property
    def problem(self) -> str:
        """What is not finite, or too large for the type, and what to take instead; "" if all is well."""
        beyond = self.activations.beyond(self.kind)
        if not beyond and not np.isfinite(self.error):
            beyond = "its logits are not finite on the golden clips"
        return beyond and f"{beyond}; export with --decoder {instead_of(self.kind)}"


def check_golden(decoder_path: Path, texts: Sequence[GoldenText], kind: DecoderType) -> DecoderCheck:
    """Run the golden texts through llama.cpp, in both ways of attending."""
    with _opened(decoder_path) as decoder, watched(decoder) as activations:
        attention = attention_error(decoder, texts)
    return DecoderCheck(attention, activations, kind)


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
