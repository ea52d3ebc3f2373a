"""Dasheng (arXiv 2406.06992): an encoder alone, without a mask.

Published code differs in the last chunk of a clip of several. Since 0.0.8, the authors' package (dasheng on PyPI) runs
it at its own length; before, and in the code on the Hugging Face hub, it is filled up with zeros. The weights are the
same, so a checkpoint does not tell which code it is for, unless its configuration has the hub code's `pad_last`.
"""

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
from .variant import Assumption, Code, Feed, Layout, Read

UNSAID = "last chunk"  # the key of what is assumed where a checkpoint does not say it
_MEL_FIELDS = ("n_fft", "win_size", "hop_size", "f_min", "f_max")  # of a Dasheng feature extractor


class DashengEncoder(ChunkedEncoder):
    """Has no mask. Where `pads_last_chunk` says so, the last chunk of several has zeros behind the batch norm."""

    def lengths(self, start: int, stop: int, samples: int | None) -> dict[str, int]:  # noqa: ARG002
        """`padded_patches`: what the chunk is filled up to, its own patches included."""
        pads = start and self.front_end.pads_last_chunk
        return {"padded_patches": self.front_end.chunk_patches if pads else stop - start}

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
    """One patch, ragged ends, all padding, two chunks at once."""
    generator, full = np.random.default_rng(0), spec.chunk_patches
    sizes = [(4, 1), (4, full), (7, 1), (7, full), (20, 5), (402, 100), (403, full), (1008, full), (504, 200)]
    cases: list[Feed] = []
    for chunks, (frames, padded) in zip([1] * 8 + [2], sizes, strict=True):
        log_mel = noise_mel(generator, (chunks, spec.n_mels, frames), -40, 20)
        cases.append({"log_mel": log_mel, "padded_patches": np.array([padded])})
    return cases


def read(stated: Stated, layout: Layout) -> Read:
    """Fields stand at the top of the configuration, or in `encoder_kwargs`.

    `pad_last` asks for zeros in the last chunk. All that pads behaves alike, but for what is taken for mistakes: the
    hub's code leaves the last chunk out where the frames are a multiple of 1008, or where `pad_last` is false, and
    mixes up the chunks of several long clips; dasheng up to 0.0.7 returns 252 patches for a last chunk of one to three
    frames.
    """
    variant, sizes = layout.variant, layout.encoder_sizes()
    nested = stated.section(variant.section)
    checked(EncoderConfig, f"{stated.source}: {variant.section}", nested, FIX)
    mel = {key: stated.mel[key] for key in _MEL_FIELDS if key in stated.mel}
    audio = {**stated.config, **nested, **mel}
    agree(stated.source, "encoder", audio, {**sizes, **variant.required})
    bands = dict.fromkeys(("feature_size", "n_mels"), sizes["n_mels"])
    agree(stated.mel_source, "", stated.mel, {**bands, **variant.extractor_required})
    known = checked(DashengConfig, stated.source, audio, FIX)
    facts = {"pads_last_chunk": bool(known.pad_last), "masks_last_patch": False}
    spec = front_end_spec(stated.source, known, sizes, 1).model_copy(update=facts)
    return known.num_heads, spec, () if known.pad_last is not None else (UNSAID,)


class DashengConfig(EncoderConfig):
    """The fields of a Dasheng encoder alone."""

    pad_last: bool | None = None


_ASSUMPTIONS = (
    Assumption(
        UNSAID, "the last chunk of a clip runs at its own length, as in dasheng 0.0.8 and later",
        "the end of clips of more than 10.08 s",
        "the configuration has no pad_last; the Hugging Face hub's code and dasheng up to 0.0.7 fill that chunk up "
        "with zeros, as --pad-last-chunk does",
    ),
)  # fmt: skip

CODE = Code(DashengEncoder, read, examples, assumptions=_ASSUMPTIONS)
