"""MiDashengLM's own Dasheng encoder (arXiv 2508.03983): the last chunk is short, and masked."""

from __future__ import annotations

from typing import Any

import numpy as np

from dasheng_edge.export.files.json_files import checked
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec

from .modules import ChunkedEncoder
from .spectrograms import noise_mel
from .stated import FIX, EncoderConfig, Stated, agree, front_end_spec
from .variant import Code, Feed, Layout, Read

CLASS_HEADS = 12  # of MiDashengLM's encoder class: what config.json leaves out is the class's default


class MiDashengLMEncoder(ChunkedEncoder):
    """Masks the last patch where the clip ends within it."""

    def lengths(self, start: int, stop: int, samples: int | None) -> dict[str, int]:
        """`valid_patches`: the leading patches that may be attended to."""
        if samples is None:
            return {}
        return {"valid_patches": min(max(self.front_end.valid_patches_of(samples) - start, 0), stop - start)}


def examples(spec: FrontEndSpec) -> list[Feed]:
    """One patch, ragged ends, a last patch that is no key, no key at all; with the second spectrogram, if any.

    The last case has chunks of several lengths, filled up: what is behind their keys does not matter to them.
    """
    generator, full = np.random.default_rng(0), spec.chunk_patches
    sizes = [(4, 1), (4, 0), (7, 1), (12, 3), (20, 4), (400, 100), (1001, 250), (1008, full - 1), (1008, full)]
    cases: list[Feed] = []
    for frames, *valid in (*sizes, (504, full // 4, 0, full // 2)):
        chunks = len(valid)
        case: dict[str, Any] = {"log_mel": noise_mel(generator, (chunks, spec.n_mels, frames), -40, 20)}
        if spec.acoustic:
            case["acoustic_mel"] = noise_mel(generator, (chunks, spec.acoustic.n_mels, frames), -5, 3)
        cases.append({**case, "valid_patches": np.array(valid)})
    return cases


def read(stated: Stated, layout: Layout) -> Read:
    """The encoder's fields stand in a section of their own."""
    section = layout.variant.section
    audio, sizes = stated.section(section), layout.encoder_sizes()
    checked(EncoderConfig, f"{stated.source}: {section}", audio, FIX)
    joined = read_projector(stated, layout)
    agree(stated.source, section, audio, {**sizes, **layout.variant.required})
    known = checked(EncoderConfig, f"{stated.source}: {section}", audio, FIX)
    return known.num_heads or CLASS_HEADS, front_end_spec(stated.source, known, sizes, joined), ()


def read_projector(stated: Stated, layout: Layout) -> int:
    """How many patches the projector joins, which the configuration must state alike."""
    agree(stated.mel_source, "", stated.mel, layout.variant.extractor_required)
    dim: int = layout.encoder_sizes()["embed_dim"]
    joined = max(1, layout.sources["audio_projector.net.0.weight"].shape[1] // dim)
    agree(stated.source, "", stated.config, {"subsample_factor": joined})
    return joined


CODE = Code(MiDashengLMEncoder, read, examples)
