"""The Dasheng encoder, the projector and their mel front end in PyTorch: the reference.

Everything that the toolkit exports is compared against this file, so it is written for reading and
follows the published model step by step. Parameter names equal those of the checkpoints: a MiDashengLM
checkpoint's `audio_encoder.*` loads into `DashengEncoder`, its `audio_projector.*` into `AudioProjector`.

Sources: Dasheng (arXiv 2406.06992), MiDashengLM (arXiv 2508.03983), torchaudio's MelSpectrogram and
AmplitudeToDB for the front end, whose filterbank is HTK's (The HTK Book, section 5.6).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dasheng_edge.runtime.front_end import FrontEndSpec


@dataclass(frozen=True)
class EncoderSpec:
    """Sizes of a Dasheng encoder; the defaults are MiDashengLM-7B's (630.3 M parameters)."""

    embed_dim: int = 1280
    depth: int = 32
    num_heads: int = 16
    mlp_ratio: float = 4.0


def mel_filterbank(spec: FrontEndSpec) -> Tensor:
    """Triangular filters on the HTK mel scale, without normalisation.

    Returns float64 [n_fft // 2 + 1, n_mels]. mel(f) = 2595 log10(1 + f / 700).
    """

    def to_mel(hz: Tensor) -> Tensor:
        return 2595.0 * torch.log10(1.0 + hz / 700.0)

    bins_hz = torch.linspace(0, spec.sample_rate_hz / 2, spec.n_fft // 2 + 1, dtype=torch.float64)
    low, high = to_mel(torch.tensor([spec.f_min_hz, spec.f_max_hz], dtype=torch.float64))
    edges_mel = torch.linspace(float(low), float(high), spec.n_mels + 2, dtype=torch.float64)
    edges_hz = 700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0)
    width_hz = edges_hz.diff()
    slope = edges_hz[None, :] - bins_hz[:, None]  # [bins, n_mels + 2]
    rising = -slope[:, :-2] / width_hz[:-1]
    falling = slope[:, 2:] / width_hz[1:]
    return torch.minimum(rising, falling).clamp(min=0)


class LogMel(nn.Module):
    """Waveform float32 [batch, samples] at 16 kHz, in [-1, 1] -> log-mel float32 [batch, n_mels, frames], in dB.

    The spectrum is computed in float64: the published float32 STFT carries rounding noise of its own in
    quiet bins (about 1e-7 of the frame's amplitude), and a reference should not be made of noise.
    The top_db floor is relative to the loudest bin of each clip, not of the batch.
    """

    window: Tensor
    filterbank: Tensor

    def __init__(self, spec: FrontEndSpec | None = None) -> None:
        super().__init__()
        self.spec = spec or FrontEndSpec()
        # Not persistent: old checkpoints store both (some rounded to bf16), new ones do not; always recomputed.
        window = torch.hann_window(self.spec.win_length, periodic=True, dtype=torch.float64)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filterbank", mel_filterbank(self.spec), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        spec = self.spec
        spectrum = torch.stft(
            waveform.double(), spec.n_fft, spec.hop_length, spec.win_length, self.window,
            center=True, pad_mode="reflect", return_complex=True,
        )  # fmt: skip
        power = spectrum.real.square() + spectrum.imag.square()  # [batch, bins, frames]
        mel = self.filterbank.T @ power
        decibel = 10.0 * mel.clamp(min=spec.log_floor).log10()
        loudest = decibel.amax(dim=(-2, -1), keepdim=True)
        return torch.maximum(decibel, loudest - spec.top_db).float()


class PatchEmbed(nn.Module):
    """Log-mel [batch, 1, n_mels, frames] -> patches [batch, dim, 1, frames // 4]."""

    def __init__(self, dim: int, n_mels: int, patch_frames: int) -> None:
        super().__init__()
        size = (n_mels, patch_frames)
        self.proj = nn.Conv2d(1, dim, kernel_size=size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out


class Attention(nn.Module):
    """Full self-attention inside a chunk; rows of `qkv` are [q; k; v], each [heads, head_dim]."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """x [batch, n, dim]; valid int64 [batch] is the number of leading keys that may be attended to.

        A query whose keys are all masked attends to nothing: its attention output is 0 (so `proj` adds
        only its bias). A softmax over nothing would be NaN, hence the mask is opened and the output zeroed.
        """
        batch, n, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if valid is None:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            none = (valid < 1)[:, None, None, None]
            keys = torch.arange(n, device=x.device) < valid[:, None, None, None]  # [batch, 1, 1, n]
            mask = (keys | none).expand(batch, 1, n, n)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask) * (~none).to(x.dtype)
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(batch, n, dim))
        return projected


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))), with the exact (erf) GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block without LayerScale."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.embed_dim, eps=1e-6)
        self.attn = Attention(spec.embed_dim, spec.num_heads)
        self.norm2 = nn.LayerNorm(spec.embed_dim, eps=1e-6)
        self.mlp = Mlp(spec.embed_dim, int(spec.embed_dim * spec.mlp_ratio))

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), valid)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class DashengEncoder(nn.Module):
    """Log-mel -> patches at 25 Hz, in chunks of 1008 frames that do not see each other."""

    def __init__(self, spec: EncoderSpec, front_end: FrontEndSpec | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.front_end = fe = front_end or FrontEndSpec()
        self.init_bn = nn.BatchNorm2d(fe.n_mels)  # over the mel axis
        self.patch_embed = PatchEmbed(spec.embed_dim, fe.n_mels, fe.patch_frames)
        self.time_pos_embed = nn.Parameter(torch.randn(1, spec.embed_dim, 1, fe.chunk_patches) * 0.02)
        self.freq_pos_embed = nn.Parameter(torch.randn(1, spec.embed_dim, 1, 1) * 0.02)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.embed_dim, eps=1e-6)

    def forward_chunk(self, log_mel: Tensor, valid: Tensor | None = None) -> Tensor:
        """One chunk: float32 [batch, n_mels, frames <= 1008] -> [batch, frames // 4, embed_dim].

        `valid`, int64 [batch], counts the leading patches that may be attended to; None means all.
        """
        x = self.init_bn(log_mel[:, :, :, None]).permute(0, 3, 1, 2)  # [batch, 1, n_mels, frames]
        x = self.patch_embed(x)  # [batch, dim, 1, patches]
        x = x + self.time_pos_embed[..., : x.shape[-1]] + self.freq_pos_embed
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, valid)
        out: Tensor = self.norm(x)
        return out

    def forward(self, log_mel: Tensor, samples: int | None = None) -> Tensor:
        """A whole clip: float32 [batch, n_mels, frames] -> [batch, frames // 4, embed_dim].

        `samples` is the clip's length, which decides how many patches are keys; None masks nothing.
        """
        fe = self.front_end
        chunks = []
        for start, stop in fe.chunks_of(log_mel.shape[-1] // fe.patch_frames):
            valid = None
            if samples is not None:
                count = min(max(fe.valid_patches_of(samples) - start, 0), stop - start)
                valid = torch.full((log_mel.shape[0],), count, device=log_mel.device)
            frames = slice(start * fe.patch_frames, stop * fe.patch_frames)
            chunks.append(self.forward_chunk(log_mel[..., frames], valid))
        return torch.cat(chunks, dim=1)


class AudioProjector(nn.Module):
    """Joins 5 consecutive patches into one audio embedding of the decoder's width.

    [batch, patches, audio_dim] -> [batch, patches // 5, llm_dim]; up to 4 trailing patches are dropped.
    It must see the patches of all chunks at once: 252 is no multiple of 5, so one token straddles two chunks.
    """

    def __init__(self, audio_dim: int, llm_dim: int, factor: int = 5) -> None:
        super().__init__()
        self.factor = factor
        self.net = nn.Sequential(nn.Linear(factor * audio_dim, llm_dim), nn.GELU(), nn.Linear(llm_dim, llm_dim))

    def forward(self, patches: Tensor) -> Tensor:
        batch, n, dim = patches.shape
        n = n // self.factor
        joined = patches[:, : n * self.factor].reshape(batch, n, self.factor * dim)
        out: Tensor = self.net(joined)
        return out
