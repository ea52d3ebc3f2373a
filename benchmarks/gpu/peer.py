"""PyTorch on the same device: what the device can do at most, and encoder and decoder of the same shape with SDPA.

    python -m benchmarks.gpu.peer SKELETON FINDINGS --device cuda

bfloat16 and random weights; the decoder is transformers' Qwen2, asked by `generate`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.gpu.findings import Findings, median
from benchmarks.gpu.measure import LENGTHS_S, numbers

CHUNK_FRAMES, PATCH_FRAMES, JOINED, MELS, FRAMES_S = 1008, 4, 5, 64, 100
PROMPT_TOKENS = 30  # of text, about
ROUNDS, WARM_UP = 7, 2
COPY_BYTES, MATMUL = 1 << 31, 8192


class Block(nn.Module):
    """A pre-norm transformer block with SDPA."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, patches, dim], unchanged in shape."""
        batch, rows, dim = x.shape
        split = self.qkv(self.norm1(x)).view(batch, rows, 3, self.heads, dim // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        x = x + self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, rows, dim))
        out: Tensor = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return out


class Audio(nn.Module):
    """Encoder and projector."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        dim, hidden = shape["embed_dim"], shape["decoder"]["hidden"]
        self.patch = nn.Linear(MELS * PATCH_FRAMES, dim)
        self.position = nn.Parameter(torch.randn(1, CHUNK_FRAMES // PATCH_FRAMES, dim) * 0.1)
        self.blocks = nn.ModuleList(Block(dim, shape["heads"]) for _ in range(shape["depth"]))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.first, self.second = nn.Linear(JOINED * dim, hidden), nn.Linear(hidden, hidden)

    def patches(self, mel: Tensor) -> Tensor:
        """Chunks [batch, 64, frames <= 1008] -> [batch, patches, dim]."""
        count = mel.shape[2] // PATCH_FRAMES
        cut = mel[:, :, : count * PATCH_FRAMES].unfold(2, PATCH_FRAMES, PATCH_FRAMES).transpose(1, 2)
        x = self.patch(cut.reshape(len(mel), count, -1)) + self.position[:, :count]
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out

    def rows(self, mel: Tensor) -> Tensor:
        """Clips [batch, 64, frames] -> audio embeddings [batch, tokens, hidden]; full chunks of all clips together."""
        batch, _, frames = mel.shape
        full = frames // CHUNK_FRAMES
        parts = []
        if full:
            chunks = mel[:, :, : full * CHUNK_FRAMES].reshape(batch, MELS, full, CHUNK_FRAMES).transpose(1, 2)
            parts.append(
                self.patches(chunks.reshape(-1, MELS, CHUNK_FRAMES)).reshape(batch, -1, self.position.shape[2])
            )
        if frames - full * CHUNK_FRAMES >= PATCH_FRAMES:
            parts.append(self.patches(mel[:, :, full * CHUNK_FRAMES :]))
        joined = torch.cat(parts, 1)
        count = joined.shape[1] // JOINED
        out: Tensor = self.second(functional.gelu(self.first(joined[:, : count * JOINED].reshape(batch, count, -1))))
        return out


class Peer:
    """Audio and text of one shape on a device."""

    def __init__(self, shape: dict[str, Any], device: str) -> None:
        self.shape, self.device = shape, device
        with torch.device(device):
            self.audio = Audio(shape).eval()
        self.text: Any = None

    def synchronize(self) -> None:
        """Wait until the device has done all."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def ms(self, call: Callable[[], object], rounds: int = ROUNDS, warm_up: int = WARM_UP) -> float:
        """Median milliseconds."""
        taken = []
        for index in range(warm_up + rounds):
            self.synchronize()
            start = time.perf_counter()
            call()
            self.synchronize()
            if index >= warm_up:
                taken.append(1000 * (time.perf_counter() - start))
        return median(taken)

    def floors(self) -> dict[str, float]:
        """Bytes a second of a copy, read and written both counted, and operations a second of a bfloat16 product."""
        small = self.device == "cpu"
        size, edge = (COPY_BYTES >> 6, MATMUL >> 4) if small else (COPY_BYTES, MATMUL)
        source = torch.empty(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        copy_ms = self.ms(lambda: target.copy_(source))
        matrix = torch.randn(edge, edge, device=self.device)
        return {
            "copy_bytes_per_s": 2000 * size / copy_ms, "flop_per_s": 2000 * edge**3 / self.ms(lambda: matrix @ matrix)
        }  # fmt: skip

    def encoder(self) -> dict[str, float]:
        """Milliseconds of encoder chunks together."""
        mels = {count: torch.randn(count, MELS, CHUNK_FRAMES, device=self.device) for count in (1, 3, 12)}
        return {f"{count}_chunks_ms": self.ms(partial(self.audio.patches, mel)) for count, mel in mels.items()}

    def load_text(self) -> dict[str, float]:
        """The decoder with random weights."""
        from transformers import Qwen2Config, Qwen2ForCausalLM

        sizes, start = self.shape["decoder"], time.perf_counter()
        config = Qwen2Config(
            vocab_size=sizes["rows"], hidden_size=sizes["hidden"], intermediate_size=sizes["intermediate"],
            num_hidden_layers=sizes["layers"], num_attention_heads=sizes["heads"],
            num_key_value_heads=sizes["kv_heads"], max_position_embeddings=sizes["positions"],
            tie_word_embeddings=False, attn_implementation="sdpa",
        )  # fmt: skip
        with torch.device("meta"):
            text: Any = Qwen2ForCausalLM(config)
        text = text.to(torch.bfloat16).to_empty(device=self.device).eval()
        for name, weight in text.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 1 / math.sqrt(weight.shape[1]))
            else:
                weight.fill_(1.0 if "norm" in name else 0.0)
        rotation = text.model.rotary_emb
        half = config.hidden_size // config.num_attention_heads // 2
        rotation.inv_freq = 1e6 ** (-torch.arange(half, device=self.device, dtype=torch.float32) / half)
        rotation.original_inv_freq = rotation.inv_freq
        self.text = text
        return {"seconds": time.perf_counter() - start}

    def answer(self, seconds: int, batch: int, tokens: int) -> None:
        """Audio and text of clips of one length."""
        mel = torch.randn(batch, MELS, seconds * FRAMES_S + 1, device=self.device)
        audio = self.audio.rows(mel)
        words = torch.randn(batch, PROMPT_TOKENS, audio.shape[2], device=self.device) * 0.3
        rows = torch.cat([words, audio], 1)
        mask = torch.ones(rows.shape[:2], dtype=torch.long, device=self.device)
        self.text.generate(
            inputs_embeds=rows, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
            pad_token_id=0, eos_token_id=self.shape["decoder"]["rows"] - 1,
        )  # fmt: skip

    def batch(self, size: int, tokens: int) -> dict[str, float]:
        """Clips a second of clips of 30 s."""
        ms = self.ms(lambda: self.answer(LENGTHS_S[-1], size, tokens), 1, 1 if size == 1 else 0)
        return {"clips_per_s": 1000 * size / ms, "ms": ms}


def main(arguments: Sequence[str] | None = None) -> int:
    """What goes wrong with a figure stands in its place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("skeleton", type=Path)
    parser.add_argument("findings", type=Path)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--lengths", type=numbers, default=list(LENGTHS_S))
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32, 64])
    parser.add_argument("--floors", action="store_true", help="nothing but what the device can do")
    given = parser.parse_args(arguments)
    findings = Findings(given.findings)
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    shape = json.loads((given.skeleton / "skeleton.json").read_text())["shape"]
    findings.note("shape", shape)
    with torch.inference_mode():
        peer = Peer(shape, given.device)
        if given.device == "cuda":
            findings.attempt("card", torch.cuda.get_device_name)
        findings.attempt("floors", peer.floors)
        findings.attempt("encoder", peer.encoder)
        if given.floors:
            return 0
        findings.attempt("load", peer.load_text)
        for seconds in given.lengths:
            first = partial(peer.answer, seconds, 1, 1)
            findings.attempt(f"first_token_{seconds}s", lambda first=first: {"ms": peer.ms(first)})  # type: ignore[misc]
        for size in given.batches:
            findings.attempt(f"batch_{size}", partial(peer.batch, size, given.tokens))
    return 0


if __name__ == "__main__":
    sys.exit(main())
