"""An importance matrix measured on audio: which inputs of each decoder matrix are large when it captions clips.

Each clip's [prompt | audio embeddings | answer] goes through the decoder, with the answer that the model itself
gives, and the squares of what every matrix multiplies are added up. llama.cpp's callback shows what it computes, so
neither llama.cpp nor the structure of its tensors is touched.

What counts is what captioning computes: the last layer's MLP and the head see only the rows that a token is chosen
from, as in the runtime. `llama-imatrix` counts every row of a text there; `text_importance` does the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dasheng_edge.runtime.errors import QuantizeError
from dasheng_edge.runtime.parts import Parts
from dasheng_edge.runtime.progress import Advance, no_advance
from dasheng_edge.runtime.text.decoder import Decoder, Embeddings
from dasheng_edge.runtime.text.llama import Watch

from .gguf_file import gguf_tensors
from .imatrix_file import Entry, Imatrix

# What llama.cpp's graphs of Qwen2 and Qwen3 call the input of the matrices of a layer.
INPUTS = {
    "attn_norm": ("attn_q", "attn_k", "attn_v"),
    "kqv_out": ("attn_output",),
    "ffn_norm": ("ffn_gate", "ffn_up"),
    "ffn_swiglu": ("ffn_down",),
}
HEAD_INPUT, HEAD = "result_norm", "output.weight"
_OF_A_LAYER = re.compile(rf"({'|'.join(INPUTS)})-(\d+)")
CHUNK_ROWS = 512  # what llama-imatrix calls a chunk, by default


@dataclass
class _Squares:
    """Sums of squares by what llama.cpp calls the activation; float64, so that their order hardly matters."""

    sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def wants(name: str) -> bool:
        return name == HEAD_INPUT or _OF_A_LAYER.fullmatch(name) is not None

    def see(self, name: str, values: NDArray[np.float32]) -> None:
        squares = np.square(values, dtype=np.float64).sum(axis=0)
        self.sums[name] = self.sums[name] + squares if name in self.sums else squares
        self.rows[name] = self.rows.get(name, 0) + len(values)


def audio_importance(
    parts: Parts, path: Path, clips: Iterable[tuple[Embeddings, str | None]], max_new_tokens: int, advance: Advance
) -> Imatrix:
    """Measure on clips: (audio embeddings float32 [tokens, llm_dim], prompt or None for the bundle's) each.

    `path` is the decoder's GGUF file, which says what matrices there are.

    Raises:
        QuantizeError: llama.cpp did not show the input of a matrix, or there was no clip.
        DecoderError, PromptError: as in captioning.
    """
    decoder, squares = parts.decoder, _Squares()
    for embeddings, prompt in clips:
        segments = parts.prompts.build(prompt).rows(embeddings)
        decoder.prefill(segments, reserve=max_new_tokens)
        answer = tuple(decoder.generate(max_new_tokens))
        decoder.watch(Watch(squares.wants, squares.see))
        try:
            decoder.score(segments, answer)
        finally:
            decoder.watch(None)
        advance(1)
    return _imatrix(squares, path, "audio")


def text_importance(decoder: Decoder, path: Path, text: str, name: str, advance: Advance = no_advance) -> Imatrix:
    """Measure on plain text, in chunks of 512 tokens, as `llama-imatrix --output-frequency 0 -c 512` does.

    What is left after the last whole chunk is not read.

    Raises:
        QuantizeError: the text is shorter than a chunk, or llama.cpp did not show the input of a matrix.
    """
    tokens = decoder.tokenize(text)
    if len(tokens) < CHUNK_ROWS:
        raise QuantizeError(
            f"{name} has {len(tokens)} tokens, an importance matrix needs at least {CHUNK_ROWS}; give it more text"
        )
    squares = _Squares()
    decoder.watch(Watch(squares.wants, squares.see))
    try:
        for start in range(0, len(tokens) - CHUNK_ROWS + 1, CHUNK_ROWS):
            chunk = tokens[start : start + CHUNK_ROWS]
            decoder.score((chunk[:1],), (*chunk[1:], chunk[0]))  # the last token asked for is not decoded
            advance(1)
    finally:
        decoder.watch(None)
    return _imatrix(squares, path, name)


def _imatrix(squares: _Squares, path: Path, dataset: str) -> Imatrix:
    """By matrix instead of activation; each matrix of the layers, and the head where it is not the embedding."""
    tensors = {name: tensor.shape for name, tensor in gguf_tensors(path).items() if len(tensor.shape) > 1}
    entries = {}
    for matrix, shape in tensors.items():
        if (source := input_of(matrix)) is None:
            continue
        if source not in squares.sums or squares.sums[source].size != shape[1]:
            got = f"{squares.sums[source].size} numbers" if source in squares.sums else "nothing"
            raise QuantizeError(
                f"llama.cpp showed {got} of {source} as the input of {matrix}, expected {shape[1]} numbers; give at "
                "least one clip, or use the llama-cpp-python version of constraints.txt"
            )
        entries[matrix] = Entry(squares.sums[source].astype(np.float32), squares.rows[source])
    chunks = max(entry.rows for entry in entries.values()) // CHUNK_ROWS
    return Imatrix(entries, (dataset,), max(chunks, 1), CHUNK_ROWS)


def input_of(matrix: str) -> str | None:
    """What llama.cpp's graph calls the input of a matrix; None of the embedding, which is looked up in."""
    if matrix == HEAD:
        return HEAD_INPUT
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", matrix)
    if not match:
        return None
    for source, matrices in INPUTS.items():
        if match[2] in matrices:
            return f"{source}-{match[1]}"
    return None


def unused(imatrix: Imatrix, path: Path) -> Sequence[str]:
    """Matrices of a decoder that an importance matrix says nothing about, or of another width."""
    return [
        name
        for name, tensor in gguf_tensors(path).items()
        if len(tensor.shape) > 1
        and input_of(name) not in (None, HEAD_INPUT)
        and (name not in imatrix.entries or imatrix.entries[name].sums.size != tensor.shape[1])
    ]
