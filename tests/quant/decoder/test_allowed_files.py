"""Every file that is made here may be given to llama.cpp: each type, architecture and kind of head, with adapters."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import gguf
import numpy as np
import pytest

from dasheng_edge.export.adapter.merge import MergedTensors, open_adapters
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.gguf.decoder import write_gguf
from dasheng_edge.export.gguf.tokenizer import read_vocabulary
from dasheng_edge.quant.decoder.gguf_file import gguf_tensors
from dasheng_edge.quant.decoder.imatrix_file import Entry, Imatrix, write_imatrix
from dasheng_edge.quant.decoder.importance import input_of
from dasheng_edge.quant.decoder.llama_quantize import quantize
from dasheng_edge.quant.decoder.quantize import TENSOR_TYPES
from dasheng_edge.quant.decoder.types import COPIED_TYPES, DecoderOptions, DecoderType
from dasheng_edge.runtime.bundle.manifest import DecoderFacts, Sampling
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.gguf.check import BLOCKS, check_gguf
from dasheng_edge.runtime.text.decoder import Decoder
from tests.fixtures.tiny_checkpoint import ROWS, write_tiny_adapter, write_tiny_checkpoint

OFTEN: tuple[DecoderType, ...] = ("Q4_K_M",)
SAMPLING = Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.1, repetition_penalty=1.1)


@pytest.fixture(scope="module", params=["midashenglm", "midashenglm-tokenizer"])  # Qwen2, and Qwen3 with a tied head
def merged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MergedTensors:
    folder = tmp_path_factory.mktemp("allowed")
    checkpoint = open_checkpoint(write_tiny_checkpoint(folder / "checkpoint", variant=request.param))
    return open_adapters([write_tiny_adapter(folder / "adapter", variant=request.param)], checkpoint)


@pytest.fixture(scope="module")
def source(merged: MergedTensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "F32.gguf"
    write_gguf(path, merged, read_vocabulary(merged.checkpoint.folder, ROWS), "F32", sampling=SAMPLING)
    return path


@pytest.fixture(scope="module")
def imatrix(source: Path) -> Path:
    generator = np.random.default_rng(0)
    entries = {
        name: Entry(generator.uniform(0.1, 9, tensor.shape[1]).astype(np.float32), 1)
        for name, tensor in gguf_tensors(source).items()
        if input_of(name) is not None
    }
    path = source.with_name("imatrix.gguf")
    write_imatrix(path, Imatrix(entries, ("random",), 3, 512))
    return path


def check(path: Path, merged: MergedTensors) -> None:
    """With the manifest and without, and in llama.cpp."""
    spec = merged.checkpoint.text_decoder
    facts = DecoderFacts(
        arch=spec.arch, hidden_size=spec.hidden_size, layers=spec.layers, vocab_size=spec.vocab_size,
        context_length=spec.context_length, parameters=1, precision="any",
    )  # fmt: skip
    check_gguf(path)
    decoder = Decoder.open(path, EngineSettings(), n_ctx=256, facts=facts)
    decoder.prefill([(1, 2, 3)])
    assert np.isfinite(decoder.logits()).all()
    decoder.close()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "exact"])
def test_files_that_are_exported(kind: str, merged: MergedTensors, tmp_path: Path) -> None:
    vocabulary = read_vocabulary(merged.checkpoint.folder, ROWS)
    write_gguf(tmp_path / "x.gguf", merged, vocabulary, kind, sampling=SAMPLING)  # type: ignore[arg-type]
    check(tmp_path / "x.gguf", merged)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(k, marks=[] if k in OFTEN else pytest.mark.slow)
        for k in get_args(DecoderType)
        if k not in COPIED_TYPES
    ],
)
def test_files_that_are_quantized(
    kind: DecoderType, source: Path, imatrix: Path, merged: MergedTensors, tmp_path: Path
) -> None:
    quantize(source, tmp_path / "x.gguf", DecoderOptions(kind, imatrix), threads=1)
    check(tmp_path / "x.gguf", merged)


def test_the_types_are_ggmls() -> None:
    assert {gguf.GGMLQuantizationType(kind): size for kind, size in BLOCKS.items()} == {
        kind: gguf.GGML_QUANT_SIZES[kind] for kind in TENSOR_TYPES
    }
