"""The Dasheng encoders, the projector and their mel front ends in PyTorch: the reference.

Everything that the toolkit exports is compared against this file, so it is written for reading and
follows the published models step by step. Parameter names equal those of the checkpoints: a MiDashengLM
checkpoint's `audio_encoder.*` loads into what `build_encoder` returns, its `audio_projector.*` into `AudioProjector`.

Sources: Dasheng (arXiv 2406.06992), MiDashengLM (arXiv 2508.03983), DashengTokenizer (arXiv 2602.23765),
torchaudio's MelSpectrogram and AmplitudeToDB for the front ends, whose filterbank is HTK's (The HTK Book, section 5.6).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dasheng_edge.runtime.bundle.front_end_spec import AcousticSpec, FrontEndSpec


@dataclass(frozen=True)
class EncoderSpec:
    """Sizes of a Dasheng encoder; the defaults are MiDashengLM-7B's (630.3 M parameters)."""

    embed_dim: int = 1280
    depth: int = 32
    num_heads: int = 16
    mlp_ratio: float = 4.0


def mel_filterbank(spec: FrontEndSpec | AcousticSpec, sample_rate_hz: int = 16_000) -> Tensor:
    """Triangular filters on the HTK mel scale, without normalisation.

    Returns float64 [n_fft // 2 + 1, n_mels]. mel(f) = 2595 log10(1 + f / 700).
    """

    def to_mel(hz: Tensor) -> Tensor:
        return 2595.0 * torch.log10(1.0 + hz / 700.0)

    bins_hz = torch.linspace(0, sample_rate_hz / 2, spec.n_fft // 2 + 1, dtype=torch.float64)
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


class AcousticMel(nn.Module):
    """Waveform float32 [batch, samples] at 16 kHz -> mel magnitudes float32 [batch, n_mels, frames], in nepers.

    ln(max(mel, floor)), as torchaudio's MelSpectrogram with power 1 gives it; float64 inside for the reason
    that `LogMel` names. It has as many frames as the log-mel: same hop, same centring.
    """

    window: Tensor
    filterbank: Tensor

    def __init__(self, spec: AcousticSpec, hop_length: int = 160) -> None:
        super().__init__()
        self.spec, self.hop_length = spec, hop_length
        window = torch.hann_window(spec.win_length, periodic=True, dtype=torch.float64)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filterbank", mel_filterbank(spec), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        spec = self.spec
        spectrum = torch.stft(
            waveform.double(), spec.n_fft, self.hop_length, spec.win_length, self.window,
            center=True, pad_mode="reflect", return_complex=True,
        )  # fmt: skip
        mel = self.filterbank.T @ spectrum.abs()
        return mel.clamp(min=spec.log_floor).log().float()


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


@dataclass(frozen=True)
class Chunk:
    """At most 10.08 s of a clip, which the encoder sees at once, and what it must know about it."""

    log_mel: Tensor  # float32 [batch, n_mels, frames <= 1008]
    valid: Tensor | None = None  # int64 [batch]: leading patches that may be attended to; None: all
    padded: int | None = None  # patches that plain Dasheng fills the chunk up to, its own included
    acoustic: Tensor | None = None  # float32 [batch, n_acoustic, frames]
    kept: Tensor | None = None  # int64 [batch]: leading patches that keep their semantic part; None: all


def chunks_of_clip(
    spec: FrontEndSpec, log_mel: Tensor, samples: int | None = None, acoustic: Tensor | None = None
) -> list[Chunk]:
    """Cut the spectrograms of a clip, float32 [batch, mels, frames], as the published models do.

    `samples` is the clip's length, which decides how many patches are keys; None masks nothing. Trailing
    frames that fill no patch go with the last chunk: only where it is padded do they make a difference.
    """
    chunks = []
    for start, stop in spec.chunks_of(log_mel.shape[-1] // spec.patch_frames):
        first = start * spec.patch_frames
        frames = slice(first, first + spec.chunk_frames)
        if spec.pads_last_chunk:
            chunks.append(Chunk(log_mel[..., frames], padded=spec.chunk_patches if start else stop))
            continue
        valid = None
        if samples is not None:
            count = min(max(spec.valid_patches_of(samples) - start, 0), stop - start)
            valid = torch.full((log_mel.shape[0],), count, device=log_mel.device)
        sound = None if acoustic is None else acoustic[..., frames]
        chunks.append(Chunk(log_mel[..., frames], valid, acoustic=sound, kept=valid if start else None))
    return chunks


class DashengEncoder(nn.Module):
    """Log-mel -> patches at 25 Hz, in chunks of 1008 frames that do not see each other.

    Plain Dasheng has no mask, and fills the last chunk of a clip of several with zeros behind the batch norm.
    """

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

    def embed(self, chunk: Chunk) -> Tensor:
        """What goes into the first block: float32 [batch, patches, embed_dim], padding included."""
        x = self.init_bn(chunk.log_mel[:, :, :, None]).permute(0, 3, 1, 2)  # [batch, 1, n_mels, frames]
        if chunk.padded is not None:  # a negative width cuts off what fills no patch
            x = F.pad(x, (0, chunk.padded * self.front_end.patch_frames - x.shape[-1]))
        x = self.patch_embed(x)  # [batch, dim, 1, patches]
        x = x + self.time_pos_embed[..., : x.shape[-1]] + self.freq_pos_embed
        out: Tensor = x.flatten(2).transpose(1, 2)
        return out

    def finish(self, x: Tensor, chunk: Chunk) -> Tensor:
        """What comes out of the last block -> the chunk's own patches, float32 [batch, frames // 4, embed_dim]."""
        out: Tensor = self.norm(x)
        return out if chunk.padded is None else out[:, : chunk.log_mel.shape[-1] // self.front_end.patch_frames]

    def forward_chunk(self, chunk: Chunk) -> Tensor:
        """One chunk -> float32 [batch, frames // 4, embed_dim]."""
        x = self.embed(chunk)
        for block in self.blocks:
            x = block(x, chunk.valid)
        return self.finish(x, chunk)

    def forward(self, log_mel: Tensor, samples: int | None = None, acoustic: Tensor | None = None) -> Tensor:
        """A whole clip: float32 [batch, n_mels, frames] -> [batch, frames // 4, embed_dim].

        The other arguments are those of `chunks_of_clip`.
        """
        chunks = chunks_of_clip(self.front_end, log_mel, samples, acoustic)
        return torch.cat([self.forward_chunk(chunk) for chunk in chunks], dim=1)


class AcousticBranch(nn.Module):
    """Acoustic mel [batch, n_mels, frames] -> patches [batch, frames // 4, dim], each seen for itself."""

    def __init__(self, dim: int, n_mels: int, patch_frames: int) -> None:
        super().__init__()
        size = (n_mels, patch_frames)
        self.patch_embed = nn.Conv2d(1, dim, kernel_size=size, stride=size)
        self.norm = nn.LayerNorm(dim, eps=1e-5)  # unlike the 1e-6 of the other norms

    def forward(self, acoustic: Tensor) -> Tensor:
        patches = self.patch_embed(acoustic[:, None]).flatten(2).transpose(1, 2)
        out: Tensor = self.norm(patches)
        return out


class DashengTokenizerEncoder(DashengEncoder):
    """A Dasheng encoder for what the sound means, plus one convolution for how it sounds.

    As published for one clip: a patch beyond the first chunk that may not be attended to (the last one, if the
    clip ends within it) has its semantic part zeroed behind the last norm; the same patch of the first chunk
    keeps it. A query without keys attends to nothing, as in the published softmax, whose NaN become 0.
    """

    def __init__(self, spec: EncoderSpec, front_end: FrontEndSpec) -> None:
        super().__init__(spec, front_end)
        assert front_end.acoustic is not None
        self.acoustic = AcousticBranch(spec.embed_dim, front_end.acoustic.n_mels, front_end.patch_frames)

    def finish(self, x: Tensor, chunk: Chunk) -> Tensor:
        semantic = super().finish(x, chunk)
        if chunk.kept is not None:
            keeps = torch.arange(semantic.shape[1], device=x.device) < chunk.kept[:, None]
            semantic = semantic * keeps[..., None].to(semantic.dtype)
        assert chunk.acoustic is not None
        out: Tensor = semantic + self.acoustic(chunk.acoustic)
        return out


def build_encoder(spec: EncoderSpec, front_end: FrontEndSpec) -> DashengEncoder:
    """The encoder that belongs to a front end, with weights that are yet to be loaded."""
    return DashengTokenizerEncoder(spec, front_end) if front_end.acoustic else DashengEncoder(spec, front_end)


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
