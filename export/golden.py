"""Test vectors of a bundle, made by the float32 reference with the merged weights.

Encoder and projector are those of `dasheng.py`; the decoder is transformers' Qwen2 fed with `inputs_embeds`;
prompt and token ids come from transformers' tokenizer and chat template. The clips are synthesised.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dasheng_edge.runtime.bundle import PromptFacts
from dasheng_edge.runtime.errors import ExportError
from dasheng_edge.runtime.front_end import FrontEndSpec

from .adapter import MergedTensors
from .dasheng import LogMel
from .encoder_onnx import load_encoder, load_projector
from .tokenizer import Vocabulary

AUDIO_MARK = -1  # stands for all audio rows in a golden prompt
MAX_TOKENS = 16
FULL_SCALE = 32768.0  # waveforms are stored as int16: x = v / 32768
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class GoldenText:
    """What the decoder made of one clip."""

    prompt: list[int]  # token ids, AUDIO_MARK where the audio rows go
    logits: npt.NDArray[np.float32]  # [vocab], after the prompt
    tokens: list[int]  # greedy, at most MAX_TOKENS, the stop token included
    margins: list[float]  # best logit minus second best, for each token


def golden_clips(spec: FrontEndSpec) -> dict[str, npt.NDArray[np.int16]]:
    """Clips by name: mono int16 at 16 kHz, in lengths that are computed differently.

    One is padded to the shortest that yields a token; in the second the last patch is a query but no key, so
    that a mask that is ignored shows; the third has two chunks, an audio token that straddles them, and a last
    patch that is no key in its second chunk.
    """
    rate = spec.sample_rate_hz
    generator = np.random.default_rng(0)

    def seconds(samples: int) -> npt.NDArray[np.float64]:
        return np.arange(samples) / rate

    t = seconds(spec.min_samples - spec.hop_length)  # 3040: padded to 3200
    knock = 0.8 * np.exp(-30 * t) * np.sin(2 * np.pi * 440 * t)
    patch = spec.patch_frames * spec.hop_length
    no_key = (spec.patch_frames - 1) * spec.hop_length  # yields one more patch, none that may be attended to
    t = seconds(62 * patch + no_key)  # 40160: 63 patches, 62 keys
    pitch_hz = np.where((t * 2).astype(int) % 2, 960.0, 770.0)  # 250 ms each, by turns
    alarm = 0.4 * np.sin(2 * np.pi * np.cumsum(pitch_hz) / rate) + 0.02 * generator.standard_normal(len(t))
    t = seconds((spec.chunk_patches + 3) * patch + no_key)  # 163680: chunks of 252 and 4 patches, 252 and 3 keys
    chirp = 0.3 * np.sin(2 * np.pi * (100 * t + 3000 * t**2 / (2 * t[-1])))
    chirp[:: rate // 2] += 0.6  # a click twice a second
    chirp[4 * rate : 5 * rate] = 0  # digital silence
    clips = {"knock": knock, "alarm": alarm, "chirp and clicks": chirp}
    return {name: (clip * 32767).round().clip(-32768, 32767).astype(np.int16) for name, clip in clips.items()}


def padded(waveform: npt.NDArray[np.int16], spec: FrontEndSpec) -> npt.NDArray[np.float32]:
    """int16 [n] -> float32 [max(n, min_samples)] in [-1, 1), silence at the end."""
    samples = (waveform / FULL_SCALE).astype(np.float32)
    return np.pad(samples, (0, spec.padded_samples_of(len(samples)) - len(samples)))


def golden_prompt(folder: Path, facts: PromptFacts) -> list[int]:
    """Token ids of the default prompt, rendered and encoded by transformers, with AUDIO_MARK for the audio.

    Raises:
        ExportError: the chat template fails, or does not put the audio in exactly once.
    """
    from transformers import Qwen2TokenizerFast

    tokenizer = Qwen2TokenizerFast.from_pretrained(str(folder), local_files_only=True)
    audio, text = {"type": "audio"}, {"type": "text", "text": facts.prompt}
    content = [audio, text] if facts.audio_first else [text, audio]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if facts.system is not None:
        messages.insert(0, {"role": "system", "content": facts.system})
    try:
        rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except jinja2.TemplateError as error:
        raise ExportError(f"the chat template of {folder.name} cannot be rendered: {error}; correct it") from error
    mark, bos, eos = facts.audio_token, facts.audio_bos_token, facts.audio_eos_token
    if f"{bos}{mark}" not in rendered and f"{mark}{eos}" not in rendered:
        rendered = rendered.replace(mark, f"{bos}{mark}{eos}")  # as MiDashengLM's processor does
    ids = [int(token) for token in tokenizer(rendered)["input_ids"]]
    mark_id = tokenizer.convert_tokens_to_ids(mark)
    if ids.count(mark_id) != 1:
        raise ExportError(
            f"the chat template of {folder.name} puts {mark} into the prompt {ids.count(mark_id)} times, expected "
            f"once; its rendering is {rendered!r}"
        )
    return [AUDIO_MARK if token == mark_id else token for token in ids]


def load_decoder(merged: MergedTensors) -> Any:
    """transformers' Qwen2ForCausalLM in float32 with the merged weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    spec = merged.checkpoint.decoder
    config = Qwen2Config(
        hidden_size=spec.hidden_size, intermediate_size=spec.intermediate_size, num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads, num_key_value_heads=spec.kv_heads, vocab_size=spec.vocab_size,
        max_position_embeddings=spec.context_length, rms_norm_eps=spec.rms_norm_eps, rope_theta=spec.rope_theta,
        tie_word_embeddings=False, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device("meta"):
        decoder = Qwen2ForCausalLM(config)
    decoder.model.rotary_emb = Qwen2RotaryEmbedding(config)  # its buffer is in no checkpoint
    decoder.load_state_dict(merged.state_dict("decoder."), assign=True)
    return decoder.eval().requires_grad_(requires_grad=False)


@torch.inference_mode()
def golden_text(decoder: Any, prompt: Sequence[int], audio: Tensor, stop_ids: frozenset[int]) -> GoldenText:
    """Greedy answer of the reference decoder to one prompt with audio rows float32 [n, hidden]."""
    embed = decoder.model.embed_tokens
    place = list(prompt).index(AUDIO_MARK)
    before, after = (embed(torch.tensor(part, dtype=torch.int64)) for part in (prompt[:place], prompt[place + 1 :]))
    rows, cache = torch.cat([before, audio, after])[None], None
    first: npt.NDArray[np.float32] | None = None
    tokens: list[int] = []
    margins: list[float] = []
    while len(tokens) < MAX_TOKENS and not (tokens and tokens[-1] in stop_ids):
        step = decoder(inputs_embeds=rows, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, logits = step.past_key_values, step.logits[0, -1]
        first = logits.numpy().copy() if first is None else first
        best, second = logits.topk(2).values.tolist()
        tokens.append(int(logits.argmax()))
        margins.append(best - second)
        rows = embed(torch.tensor([[tokens[-1]]]))
    assert first is not None
    return GoldenText(list(prompt), first, tokens, margins)


def check_memory(merged: MergedTensors) -> None:
    """The reference decoder is held whole in float32: refuse before it makes the machine swap.

    Raises:
        ExportError: less memory is available; silent where the system does not tell.
    """
    names = [name for name in merged.checkpoint.sources if name.startswith("decoder.")]
    needed = sum(4 * torch.Size(merged.shape(name)).numel() for name in names)
    available = available_memory()
    if available is not None and needed > available:
        raise ExportError(
            f"the golden vectors need the decoder of {merged.checkpoint.folder.name} in float32, {needed / 2**30:.1f} "
            f"GiB of memory, and {available / 2**30:.1f} GiB are available; close other programs, or export on a "
            "machine with more memory"
        )


def available_memory() -> int | None:
    """Bytes that programs can still have (Linux), else None.

    Not os.sysconf("SC_AVPHYS_PAGES"), which leaves out what the system would give back, such as cached files.
    """
    try:
        text = MEMINFO.read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) << 10 if found else None


@torch.inference_mode()
def golden_audio(merged: MergedTensors) -> dict[str, npt.NDArray[Any]]:
    """Waveforms, log-mels [mels, frames], patches [patches, dim] and embeddings [n, llm_dim] of all clips."""
    spec = merged.checkpoint.front_end
    log_mel, encoder, projector = LogMel(spec), load_encoder(merged), load_projector(merged)
    clips = golden_clips(spec)
    vectors: dict[str, npt.NDArray[Any]] = {"names": np.array(list(clips))}
    for i, waveform in enumerate(clips.values()):
        samples = padded(waveform, spec)
        mel = log_mel(torch.from_numpy(samples)[None])
        patches = encoder(mel, len(samples))
        vectors[f"waveform_{i}"] = waveform
        vectors[f"log_mel_{i}"] = mel[0].numpy()
        vectors[f"patches_{i}"] = patches[0].numpy()
        vectors[f"embeddings_{i}"] = projector(patches)[0].numpy()
    return vectors


def write_golden(
    path: Path,
    merged: MergedTensors,
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    advance: Callable[[int], None] = lambda _: None,
) -> Mapping[str, npt.NDArray[Any]]:
    """Write `golden.npz` and return what is in it; encoder and decoder are in memory one after the other.

    `prompt` is that of `golden_prompt`; `advance` is told of each clip.

    Raises:
        ExportError: there is not enough memory, or the reference itself yields NaN.
    """
    vectors = golden_audio(merged)
    gc.collect()
    check_memory(merged)
    decoder = load_decoder(merged)
    for i in range(len(vectors["names"])):
        audio = torch.from_numpy(vectors[f"embeddings_{i}"])
        text = golden_text(decoder, prompt, audio, vocabulary.stop_ids)
        vectors[f"prompt_{i}"] = np.array(text.prompt, np.int32)
        vectors[f"logits_{i}"] = text.logits
        vectors[f"tokens_{i}"] = np.array(text.tokens, np.int32)
        vectors[f"margins_{i}"] = np.array(text.margins, np.float32)
        advance(1)
    for name, value in vectors.items():
        if value.dtype == np.float32 and not np.isfinite(value).all():
            raise ExportError(
                f"the reference yields NaN or infinity in {name}, so a weight of {merged.checkpoint.folder.name} is "
                "not finite; download the checkpoint again"
            )
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **vectors)
    return vectors
