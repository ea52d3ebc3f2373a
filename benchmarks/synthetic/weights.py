"""Random weights on which a model of any depth computes sane values: nothing vanishes, explodes or saturates.

What a matrix receives has an RMS of about one, so its values have a variance of 1 / fan-in. What is added to the
residual stream is smaller by sqrt(2 depth), two branches per block, so that all of them together add about one
(as GPT-2 initialises).

A value is the normal quantile that a random 16-bit number points to, so the stored bits are looked up, not computed:
exactly the same on every machine, and as fast as a disk writes.
"""

from __future__ import annotations

import functools
import hashlib
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.synthetic.shapes import Architecture, Dtype, Shape

LEVELS = 1 << 16  # how many different values a tensor has
BLOCK_VALUES = 1 << 22  # at a time: 8 MiB of random bits, 16 MiB of float32
RATE_HZ, F_MAX_HZ = 16_000, 8_000.0
# Log-mels of speech and of everyday sounds, in dB, and how much mel bands differ in that.
MEL_MEAN_DB, MEL_MEAN_SPREAD_DB = -20.0, 8.0
MEL_VARIANCE, MEL_VARIANCE_SPREAD = 18.0**2, 0.15 * 18.0**2
BATCHES_TRACKED = 100_000

_RESIDUAL = ("attn.proj", "mlp.fc2", "self_attn.o_proj", "mlp.down_proj")  # what ends a branch
# Beside the audio's 0.7. Larger ones keep errors of coarse types from growing through the layers, and the audio from
# being heard; where the head is the embedding, a token that remains itself in the stream would answer itself.
_EMBEDDING, _TIED_EMBEDDING = 0.3, 0.03
_VECTOR_SPREAD = 0.1  # of biases and positions about zero, of norms about one


@dataclass(frozen=True)
class Distribution:
    """A normal distribution, cut off at 4.3 standard deviations."""

    mean: float
    spread: float


def distribution(name: str, shape: Shape, model: Architecture) -> Distribution:
    """What the values of a tensor are drawn from."""
    module, _, leaf = name.rpartition(".")
    if leaf == "running_mean":
        return Distribution(MEL_MEAN_DB, MEL_MEAN_SPREAD_DB)
    if leaf == "running_var":
        return Distribution(MEL_VARIANCE, MEL_VARIANCE_SPREAD)
    if "embed_tokens" in module:
        return Distribution(0.0, _TIED_EMBEDDING if model.decoder and model.decoder.tied else _EMBEDDING)
    branch = 1.0
    if module.endswith(_RESIDUAL):
        decodes = module.startswith("decoder.") and model.decoder
        branch = 1 / math.sqrt(2 * (decodes.layers if decodes else model.depth))
    if "_pos_embed" in leaf or len(shape) == 1:
        scales = leaf == "weight" and ("norm" in module or "init_bn" in module)
        return Distribution(1.0 if scales else 0.0, _VECTOR_SPREAD * branch)
    return Distribution(0.0, branch / math.sqrt(math.prod(shape[1:])))


def tensor_bytes(
    name: str, shape: Shape, model: Architecture, *, dtype: Dtype, seed: int
) -> Iterator[npt.NDArray[Any]]:
    """The stored values of a tensor in blocks: float32, bfloat16 as its bits (uint16), or int64 for the counter."""
    if name.endswith("num_batches_tracked"):
        yield np.array([BATCHES_TRACKED], np.int64)
    elif name.endswith("spectrogram.window"):
        yield _stored(hann_window(shape[0]), dtype)
    elif name.endswith("mel_scale.fb"):
        yield _stored(mel_filterbank(*shape), dtype)
    else:
        drawn = distribution(name, shape, model)
        values = _stored(np.float32(drawn.mean) + np.float32(drawn.spread) * _quantiles(), dtype)
        yield from _draws(values, math.prod(shape), seed, name)


def _draws(values: npt.NDArray[Any], count: int, seed: int, name: str) -> Iterator[npt.NDArray[Any]]:
    """`count` of the values at random; the stream depends on seed and name only."""
    key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:16], "little")
    generator = np.random.SFC64(key)
    for start in range(0, count, BLOCK_VALUES):
        size = min(BLOCK_VALUES, count - start)
        bits = generator.random_raw(-(-size // 4)).astype("<u8", copy=False)  # four draws in each
        yield values[bits.view("<u2")[:size]]


@functools.cache
def _quantiles() -> npt.NDArray[np.float32]:
    """Quantiles of the standard normal distribution at the middle of each of the levels, float32 [LEVELS]."""
    inverse = statistics.NormalDist().inv_cdf
    upper = [inverse((LEVELS // 2 + i + 0.5) / LEVELS) for i in range(LEVELS // 2)]
    half = np.array(upper, np.float32)
    return np.concatenate([-half[::-1], half])


def _stored(values: npt.NDArray[np.float32], dtype: Dtype) -> npt.NDArray[Any]:
    if dtype == "fp32":
        return values.astype("<f4", copy=False)
    bits: npt.NDArray[np.uint32] = values.astype("<f4", copy=False).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # round to nearest, ties to even


def hann_window(length: int) -> npt.NDArray[np.float32]:
    """Periodic Hann window, float32 [length]."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def mel_filterbank(bins: int, mels: int) -> npt.NDArray[np.float32]:
    """Triangles that are equally spaced on HTK's mel scale, 2595 log10(1 + f / 700), not normalised: [bins, mels]."""
    edges_mel = np.linspace(0, 2595 * np.log10(1 + F_MAX_HZ / 700), mels + 2)
    edges_hz = 700 * (10 ** (edges_mel / 2595) - 1)
    frequencies = np.linspace(0, RATE_HZ / 2, bins)
    slopes = edges_hz[None, :] - frequencies[:, None]
    widths = np.diff(edges_hz)
    return np.clip(np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]), 0, None).astype(np.float32)
