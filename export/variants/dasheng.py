"""Dasheng (arXiv 2406.06992): an encoder alone, which fills the last chunk of a clip up with zeros."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dasheng_edge.export.files.json_files import checked
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec

from .modules import Chunk, ChunkedEncoder
from .spectrograms import noise_mel
from .stated import FIX, EncoderConfig, Stated, agree, front_end_spec
from .variant import Code, Feed, Layout, Read

_MEL_FIELDS = ("n_fft", "win_size", "hop_size", "f_min", "f_max")  # of a Dasheng feature extractor


class DashengEncoder(ChunkedEncoder):
    """Has no mask, and fills the last chunk of a clip of several with zeros behind the batch norm."""

    def lengths(self, start: int, stop: int, samples: int | None) -> dict[str, int]:  # noqa: ARG002
        """`padded_patches`: what the chunk is filled up to, its own patches included."""
        return {"padded_patches": self.front_end.chunk_patches if start else stop}

    def embed(self, chunk: Chunk) -> Tensor:
        padded = cast("int", chunk["padded_patches"][0].item())  # a symbol, while it is traced
        torch._check(padded >= 1)  # noqa: SLF001  # how torch.export is told the range of a size
        torch._check(padded <= self.front_end.chunk_patches)  # noqa: SLF001
        mel = self.normalised(chunk)
        # A negative width cuts off what fills no patch.
        return self.positioned(F.pad(mel, (0, padded * self.front_end.patch_frames - mel.shape[-1])))

    def finish(self, x: Tensor, chunk: Chunk) -> Tensor:
        return super().finish(x, chunk)[:, : chunk["log_mel"].shape[-1] // self.front_end.patch_frames]


def examples(spec: FrontEndSpec) -> list[Feed]:
    """One patch, ragged ends, all padding."""
    generator, full = np.random.default_rng(0), spec.chunk_patches
    sizes = [(4, 1), (4, full), (7, 1), (7, full), (20, 5), (402, 100), (403, full), (1008, full), (504, 200)]
    return [
        {"log_mel": noise_mel(generator, spec.n_mels, frames, -40, 20), "padded_patches": np.array([padded])}
        for frames, padded in sizes
    ]


def read(stated: Stated, layout: Layout) -> Read:
    """Fields stand at the top of the configuration, or in `encoder_kwargs`.

    The Hugging Face code pads the last chunk as the original does, behind the batch norm and with zeros, and keeps
    floor(frames / 4) patches. It differs in two lines that are taken for mistakes: where the frames are a multiple
    of 1008 it leaves out the last chunk, and with several clips of more than a chunk each it mixes their chunks up.
    """
    variant, sizes = layout.variant, layout.encoder_sizes()
    nested = stated.section(variant.section)
    checked(EncoderConfig, f"{stated.source}: {variant.section}", nested, FIX)
    mel = {key: stated.mel[key] for key in _MEL_FIELDS if key in stated.mel}
    audio = {**stated.config, **nested, **mel}
    agree(stated.source, "encoder", audio, {**sizes, **variant.required})
    bands = dict.fromkeys(("feature_size", "n_mels"), sizes["n_mels"])
    agree(stated.mel_source, "", stated.mel, {**bands, **variant.extractor_required})
    known = checked(EncoderConfig, stated.source, audio, FIX)
    spec = front_end_spec(stated.source, known, sizes, 1)
    return known.num_heads, spec.model_copy(update={"pads_last_chunk": True}), ()


CODE = Code(DashengEncoder, read, examples)
