"""The reference, applied: whole for small models, or with one transformer block in memory at a time.

Block i of all chunks is computed before block i + 1 is read, so that 4.5 GB of weights (Dasheng-1.2B) need 0.2 GB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.variants.modules import AudioProjector, Block, Chunk, ChunkedEncoder
from dasheng_edge.export.variants.spectrograms import AcousticMel, LogMel
from dasheng_edge.runtime.audio.front_end import Features
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec

ENCODER_PREFIX, PROJECTOR_PREFIX = "audio_encoder.", "audio_projector."


def load_encoder(merged: MergedTensors) -> ChunkedEncoder:
    """The reference encoder in float32 with the merged weights, ready for inference."""
    encoder = meta_encoder(merged)
    load_weights(encoder, merged.state_dict(ENCODER_PREFIX))
    return encoder


def load_projector(merged: MergedTensors) -> AudioProjector:
    """The reference projector in float32 with the merged weights."""
    projector = meta_projector(merged)
    load_weights(projector, merged.state_dict(PROJECTOR_PREFIX))
    return projector


def meta_encoder(merged: MergedTensors, depth: int | None = None) -> ChunkedEncoder:
    """The encoder without weights, on torch's meta device; `depth` is the number of blocks, None for all."""
    spec = merged.checkpoint.encoder
    with torch.device("meta"):
        spec = spec if depth is None else dataclasses.replace(spec, depth=depth)
        return merged.checkpoint.variant.code.encoder(spec, merged.checkpoint.front_end)


def meta_projector(merged: MergedTensors) -> AudioProjector:
    """The projector without weights."""
    checkpoint = merged.checkpoint
    with torch.device("meta"):
        return AudioProjector(
            checkpoint.encoder.embed_dim, checkpoint.text_decoder.hidden_size, checkpoint.front_end.tokens_patches
        )


def reference_features(spec: FrontEndSpec, waveform: npt.NDArray[np.float32]) -> Features:
    """Waveform float32 [n] at 16 kHz, padded already where it is short -> its spectrograms."""
    samples = torch.from_numpy(waveform)[None]
    acoustic = AcousticMel(spec.acoustic, spec.hop_length)(samples)[0].numpy() if spec.acoustic else None
    return Features(LogMel(spec)(samples)[0].numpy(), acoustic, len(waveform))


def stream_patches(merged: MergedTensors, clips: Sequence[Features]) -> list[npt.NDArray[np.float32]]:
    """Patches float32 [patches, embed_dim] of each clip; equals `ChunkedEncoder.forward`."""
    encoder = meta_encoder(merged, depth=0)
    cut = [
        encoder.chunks_of(
            torch.from_numpy(clip.log_mel)[None], clip.samples,
            None if clip.acoustic is None else torch.from_numpy(clip.acoustic)[None],
        )
        for clip in clips
    ]  # fmt: skip
    patches = iter(stream_chunks(merged, [chunk for chunks in cut for chunk in chunks]))
    return [torch.cat([next(patches)[0] for _ in chunks]).numpy() for chunks in cut]


@torch.inference_mode()
def stream_chunks(merged: MergedTensors, chunks: Sequence[Chunk]) -> list[Tensor]:
    """Patches float32 [batch, patches, embed_dim] of each chunk; equals `ChunkedEncoder.forward_chunk`."""
    encoder = meta_encoder(merged, depth=0)  # what comes before and after the blocks
    names = [name for name in merged.names(ENCODER_PREFIX) if not name.startswith(f"{ENCODER_PREFIX}blocks.")]
    load_weights(encoder, {name.removeprefix(ENCODER_PREFIX): merged.tensor(name) for name in names})
    rows = [encoder.embed(chunk) for chunk in chunks]
    for index in range(merged.checkpoint.encoder.depth):
        with torch.device("meta"):
            block = Block(merged.checkpoint.encoder)
        load_weights(block, merged.state_dict(f"{ENCODER_PREFIX}blocks.{index}."))
        rows = [block(x, chunk.get("valid_patches")) for x, chunk in zip(rows, chunks, strict=True)]
    return [encoder.finish(x, chunk) for x, chunk in zip(rows, chunks, strict=True)]


def load_weights(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put weights into a module that has none, and make it ready for inference."""
    if isinstance(module, ChunkedEncoder):
        state["init_bn.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)  # used in training only
    module.load_state_dict(state, assign=True)
    module.eval().requires_grad_(requires_grad=False)
