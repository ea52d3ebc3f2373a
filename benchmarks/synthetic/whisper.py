"""An audio encoder for llama.cpp's mtmd of the shape of Qwen2-Audio's, Whisper large-v3, with random weights.

It has about as many parameters as the encoder of MiDashengLM-7B, and is what llama.cpp itself can hear with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import gguf
import numpy as np
from numpy.typing import NDArray

Precision: TypeAlias = Literal["F16", "Q8_0"]
Array: TypeAlias = NDArray[np.float32]
KERNEL = 3  # of both convolutions
POSITIONS = "a.position_embd.weight"


@dataclass(frozen=True)
class WhisperShape:
    """Sizes of an encoder."""

    width: int = 1280
    depth: int = 32
    heads: int = 20
    mels: int = 128
    positions: int = 1500  # of 30 s; shorter clips are filled up to them

    @property
    def parameters(self) -> int:
        """Of the encoder, without the projector."""
        block = 12 * self.width**2 + 13 * self.width - self.width  # keys have no bias
        convolutions = KERNEL * self.width * (self.mels + self.width) + 2 * self.width
        return self.depth * block + convolutions + self.positions * self.width + 2 * self.width


LARGE = WhisperShape()


def write_whisper(path: Path, llm_width: int, precision: Precision, shape: WhisperShape = LARGE) -> None:
    """Write the GGUF; `precision` is that of the matrices, convolutions are F16 as in files that llama.cpp converts."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_audio_encoder", True)
    writer.add_string("clip.projector_type", "qwen2a")
    writer.add_uint32("clip.audio.embedding_length", shape.width)
    writer.add_uint32("clip.audio.feed_forward_length", 4 * shape.width)
    writer.add_uint32("clip.audio.block_count", shape.depth)
    writer.add_uint32("clip.audio.attention.head_count", shape.heads)
    writer.add_float32("clip.audio.attention.layer_norm_epsilon", 1e-5)
    writer.add_uint32("clip.audio.num_mel_bins", shape.mels)
    writer.add_uint32("clip.audio.projection_dim", llm_width)
    for name, values in whisper_tensors(shape, llm_width):
        if name.endswith(".bias") or values.ndim == 1 or name == POSITIONS:
            writer.add_tensor(name, values)
        elif values.ndim == 2 and precision == "Q8_0":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def whisper_tensors(shape: WhisperShape, llm_width: int, seed: int = 0) -> Iterator[tuple[str, Array]]:
    """By llama.cpp's names. All blocks have the same numbers, which changes nothing about how long they take."""
    generator, width, wide = np.random.default_rng(seed), shape.width, 4 * shape.width

    def matrix(rows: int, columns: int) -> Array:
        return generator.standard_normal((rows, columns), np.float32) * np.float32(0.5 / np.sqrt(columns))

    for index, columns in ((1, shape.mels), (2, width)):
        yield f"a.conv1d.{index}.weight", matrix(width, columns * KERNEL).reshape(width, columns, KERNEL)
        yield f"a.conv1d.{index}.bias", np.zeros((width, 1), np.float32)
    yield POSITIONS, matrix(shape.positions, width)
    square = matrix(width, width)
    linear = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_out": square,
              "ffn_up": matrix(wide, width), "ffn_down": matrix(width, wide)}  # fmt: skip
    for index in range(shape.depth):
        for name in ("ln1", "ln2"):
            yield from _norm(f"a.blk.{index}.{name}", width)
        for name, values in linear.items():
            yield f"a.blk.{index}.{name}.weight", values
            if name != "attn_k":
                yield f"a.blk.{index}.{name}.bias", np.zeros(len(values), np.float32)
    yield from _norm("a.post_ln", width)
    yield "mm.a.fc.weight", matrix(llm_width, width)
    yield "mm.a.fc.bias", np.zeros(llm_width, np.float32)


def _norm(name: str, width: int) -> Iterator[tuple[str, Array]]:
    yield f"{name}.weight", np.ones(width, np.float32)
    yield f"{name}.bias", np.zeros(width, np.float32)
