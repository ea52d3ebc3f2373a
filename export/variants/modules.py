"""What the encoders of the family are built of, and the projector, in PyTorch: the reference.

Everything that the toolkit exports is compared with these modules and those of the encoders beside them, so they are
written for reading and follow the published models step by step. Parameter names equal those of the checkpoints: a
MiDashengLM checkpoint's `audio_encoder.*` loads into an encoder, its `audio_projector.*` into `AudioProjector`.

Sources: Dasheng (arXiv 2406.06992), MiDashengLM (arXiv 2508.03983).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec

from .specs import EncoderSpec


class PatchConvolution(nn.Conv2d):
    """A spectrogram [batch, n_mels, frames] -> patches [batch, frames // 4, dim], each seen for itself."""

    def __init__(self, dim: int, n_mels: int, patch_frames: int) -> None:
        super().__init__(1, dim, kernel_size=(n_mels, patch_frames), stride=(n_mels, patch_frames))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as torch calls it
        return super().forward(input[:, None]).flatten(2).transpose(1, 2)


class PatchEmbed(nn.Module):
    """Log-mel [batch, n_mels, frames] -> patches [batch, frames // 4, dim]."""

    def __init__(self, dim: int, n_mels: int, patch_frames: int) -> None:
        super().__init__()
        self.proj = PatchConvolution(dim, n_mels, patch_frames)

    def forward(self, mel: Tensor) -> Tensor:
        out: Tensor = self.proj(mel)
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
        none: Tensor | None = None
        if valid is None:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            none = (valid < 1)[:, None, None]
            keys = torch.arange(n, device=x.device) < valid[:, None, None]  # [batch, 1, n]
            mask = (keys | none)[:, None].expand(batch, 1, n, n)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        rows = out.transpose(1, 2).reshape(batch, n, dim)
        if none is not None:
            rows = rows * (~none).to(x.dtype)
        projected: Tensor = self.proj(rows)
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


Chunk: TypeAlias = Mapping[str, Tensor]  # at most 10.08 s of a clip: the inputs of the encoder's graph, by name


class ChunkedEncoder(nn.Module):
    """Log-mel -> patches at 25 Hz, in chunks of 1008 frames that do not see each other.

    A chunk holds spectrograms float32 [batch, mels, frames <= 1008], and what the member of the family must know
    about it, int64 [batch] or, for all of the batch, [1]: see `lengths`.
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

    def lengths(self, start: int, stop: int, samples: int | None) -> dict[str, int]:
        """What goes with the spectrograms of the chunk that holds patches [start, stop) of a clip, by input name.

        `samples` is the clip's length, which decides how many patches are keys; None masks nothing.
        """
        raise NotImplementedError

    def chunks_of(self, log_mel: Tensor, samples: int | None = None, acoustic: Tensor | None = None) -> list[Chunk]:
        """Cut the spectrograms of a clip, float32 [batch, mels, frames], as the published models do.

        Trailing frames that fill no patch go with the last chunk: only where it is padded do they make a difference.
        """
        spec = self.front_end
        mels = {"log_mel": log_mel} | ({} if acoustic is None else {"acoustic_mel": acoustic})
        chunks: list[Chunk] = []
        for start, stop in spec.chunks_of(log_mel.shape[-1] // spec.patch_frames):
            first = start * spec.patch_frames
            chunk = {name: mel[..., first : first + spec.chunk_frames] for name, mel in mels.items()}
            for name, length in self.lengths(start, stop, samples).items():
                chunk[name] = torch.tensor([length], device=log_mel.device)
            chunks.append(chunk)
        return chunks

    def normalised(self, chunk: Chunk) -> Tensor:
        """The log-mel behind the batch norm: float32 [batch, n_mels, frames]."""
        out: Tensor = self.init_bn(chunk["log_mel"][..., None]).squeeze(-1)
        return out

    def positioned(self, mel: Tensor) -> Tensor:
        """The same -> what goes into the first block: float32 [batch, patches, embed_dim]."""
        x: Tensor = self.patch_embed(mel)
        times = self.time_pos_embed.permute(0, 2, 3, 1).squeeze(0)[:, : x.shape[1]]  # [1, patches, embed_dim]
        return x + times + self.freq_pos_embed.flatten()

    def embed(self, chunk: Chunk) -> Tensor:
        """What goes into the first block: float32 [batch, patches, embed_dim]."""
        return self.positioned(self.normalised(chunk))

    def finish(self, x: Tensor, chunk: Chunk) -> Tensor:  # noqa: ARG002  # some members need it
        """What comes out of the last block -> the chunk's own patches, float32 [batch, frames // 4, embed_dim]."""
        out: Tensor = self.norm(x)
        return out

    def forward_chunk(self, chunk: Chunk) -> Tensor:
        """One chunk -> float32 [batch, frames // 4, embed_dim]."""
        x = self.embed(chunk)
        for block in self.blocks:
            x = block(x, chunk.get("valid_patches"))
        return self.finish(x, chunk)

    def forward(self, log_mel: Tensor, samples: int | None = None, acoustic: Tensor | None = None) -> Tensor:
        """A whole clip: float32 [batch, n_mels, frames] -> [batch, frames // 4, embed_dim].

        The arguments are those of `chunks_of`.
        """
        return torch.cat([self.forward_chunk(chunk) for chunk in self.chunks_of(log_mel, samples, acoustic)], dim=1)


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
