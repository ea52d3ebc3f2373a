"""Importance matrices against PyTorch, against llama-imatrix, and llama-quantize with one of ours."""

from __future__ import annotations

import signal
import subprocess
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from dasheng_edge.export.adapter.merge import open_adapters
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.quant.decoder.imatrix_file import read_imatrix, write_imatrix
from dasheng_edge.quant.decoder.importance import CHUNK_ROWS, audio_importance, input_of, text_importance, unused
from dasheng_edge.quant.decoder.llama_quantize import quantize
from dasheng_edge.quant.decoder.types import DecoderOptions, DecoderType
from dasheng_edge.runtime.bundle.bundle import DECODER, Bundle
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import DecoderError, QuantizeError
from dasheng_edge.runtime.parts import Parts
from dasheng_edge.runtime.text.decoder import Decoder
from dasheng_edge.runtime.text.llama import Watch
from tests.fixtures.whole_decoder import whole_decoder

REPOSITORY = Path(__file__).resolve().parents[3]
MICRO = REPOSITORY / "build" / "micro" / DECODER
PROGRAMS = REPOSITORY / "build" / "llama.cpp" / "bin"
TEXT = " ".join(f"a dog barks {i} times while rain falls, followed by {i % 7} church bells" for i in range(120))
needs_micro = pytest.mark.skipif(not MICRO.is_file(), reason="make build/micro makes it")
needs_programs = pytest.mark.skipif(not PROGRAMS.is_dir(), reason="make llama-tools builds them")


def test_equal_to_what_pytorch_multiplies(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    parts = Parts.open(bundle, EngineSettings())
    embeddings = np.random.default_rng(0).normal(size=(17, parts.decoder.n_embd)).astype(np.float32)
    counted: list[int] = []
    found = audio_importance(parts, bundle.path(DECODER), [(embeddings, None)], 12, counted.append)
    assert counted == [1]
    segments = parts.prompts.build().rows(embeddings)
    parts.decoder.prefill(segments, reserve=12)
    answer = list(parts.decoder.generate(12))
    parts.decoder.close()

    model = whole_decoder(open_adapters((), open_checkpoint(tiny_checkpoint)))
    table = model.get_input_embeddings().weight
    prompt = torch.cat(
        [torch.from_numpy(one) if isinstance(one, np.ndarray) else table[torch.tensor(one)] for one in segments]
    )
    rows = torch.cat([prompt, table[torch.tensor(answer[:-1], dtype=torch.long)]])
    seen: dict[str, torch.Tensor] = {}

    def note(name: str, _: object, inputs: tuple[torch.Tensor, ...]) -> None:
        seen[name] = inputs[0][0].double()

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(partial(note, name))
    with torch.no_grad():
        model(inputs_embeds=rows[None])
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 2)
    assert len(found.entries) == 2 * 7 + 1
    for name, values in seen.items():
        stored = mapping.get_name(f"{name}.weight", try_suffixes=(".weight",))
        entry = found.entries[str(stored)]
        # Behind the last layer's attention, only what a token is chosen from is computed.
        last = name.startswith("model.layers.1.mlp") or name == "lm_head"
        used = values[len(prompt) - 1 :] if last else values
        assert entry.rows == len(used)
        np.testing.assert_allclose(entry.sums, used.square().sum(0).numpy(), rtol=1e-4, atol=1e-6)


@needs_micro
@needs_programs
def test_text_gives_what_llama_imatrix_gives(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    command = (
        "llama-imatrix", "-m", MICRO, "-f", tmp_path / "text.txt", "-o", tmp_path / "theirs.gguf", "--process-output",
        "-c", str(CHUNK_ROWS), "--no-ppl", "--output-format", "gguf", "-t", "1", "--no-repack",
    )  # fmt: skip
    subprocess.run([PROGRAMS / command[0], *command[1:]], check=True, capture_output=True)
    theirs = read_imatrix(tmp_path / "theirs.gguf")
    decoder = Decoder.open(MICRO, EngineSettings())
    ours = text_importance(decoder, MICRO, TEXT, "text")
    decoder.close()
    assert ours.entries.keys() == theirs.entries.keys()
    assert (ours.chunks, ours.chunk_size) == (theirs.chunks, theirs.chunk_size)
    for name, wanted in theirs.entries.items():
        assert ours.entries[name].rows == wanted.rows
        want = theirs.importance(name)
        # Keys, values and products are rounded to halves in both, in another order.
        np.testing.assert_allclose(ours.importance(name), want, rtol=0.02, atol=0.02 * float(want.mean()))
    assert unused(theirs, MICRO) == []


@needs_micro
@needs_programs
@pytest.mark.parametrize(
    "kind",
    [
        "Q4_K_M",
        "Q2_K",
        pytest.param("IQ3_XXS", marks=pytest.mark.slow),
        pytest.param("IQ2_XXS", marks=pytest.mark.slow),
    ],
)
def test_llama_quantize_makes_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: DecoderType) -> None:
    decoder = Decoder.open(MICRO, EngineSettings())
    write_imatrix(tmp_path / "imatrix.gguf", text_importance(decoder, MICRO, TEXT, "text"))
    decoder.close()
    monkeypatch.chdir(tmp_path)
    options = ("--imatrix", "imatrix.gguf", "--tensor-type", "attn_v=q8_0")
    subprocess.run(
        [PROGRAMS / "llama-quantize", *options, MICRO, "theirs.gguf", kind, "1"], check=True, capture_output=True
    )
    types = {"attn_v": GGMLQuantizationType.Q8_0}
    quantize(MICRO, Path("ours.gguf"), DecoderOptions(kind, Path("imatrix.gguf"), types), 1)
    assert Path("ours.gguf").read_bytes() == Path("theirs.gguf").read_bytes()


@needs_micro
def test_a_text_shorter_than_a_chunk_is_refused() -> None:
    decoder = Decoder.open(MICRO, EngineSettings())
    with pytest.raises(QuantizeError, match=r"short has .* tokens, an importance matrix needs at least 512"):
        text_importance(decoder, MICRO, "rain falls", "short")
    decoder.close()


def test_a_matrix_that_llama_cpp_does_not_show_is_an_error(tiny_bundle: Path) -> None:
    parts = Parts.open(Bundle.open(tiny_bundle), EngineSettings())
    with pytest.raises(QuantizeError, match=r"llama\.cpp showed nothing of .*; give at least one clip"):
        audio_importance(parts, tiny_bundle / DECODER, [], 4, lambda _: None)
    parts.decoder.close()


def test_inputs_of_matrices() -> None:
    assert input_of("blk.12.attn_k.weight") == "attn_norm-12"
    assert input_of("blk.0.ffn_down.weight") == "ffn_swiglu-0"
    assert input_of("output.weight") == "result_norm"
    assert input_of("token_embd.weight") is None
    assert input_of("blk.0.attn_norm.weight") is None


def test_an_error_ends_the_watch(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts.open(Bundle.open(tiny_bundle), EngineSettings())
    embeddings = np.zeros((5, parts.decoder.n_embd), np.float32)
    watches: list[object] = []
    watch = parts.decoder.watch

    def noted(one: Watch | None) -> None:
        watches.append(one)
        watch(one)

    monkeypatch.setattr(parts.decoder, "watch", noted)

    def fail(*_: object) -> None:
        raise DecoderError("no")

    monkeypatch.setattr(parts.decoder, "score", fail)
    with pytest.raises(DecoderError, match="no"):
        audio_importance(parts, tiny_bundle / DECODER, [(embeddings, None)], 4, lambda _: None)
    assert watches[-1] is None
    assert len(watches) == 2
    parts.decoder.close()


def test_clips_and_prompts_add_up(tiny_bundle: Path) -> None:
    """Of two clips, what each gives; another prompt has other rows."""
    parts = Parts.open(Bundle.open(tiny_bundle), EngineSettings())
    generator = np.random.default_rng(0)
    clips = [
        (generator.normal(size=(rows, parts.decoder.n_embd)).astype(np.float32), prompt)
        for rows, prompt in ((7, None), (11, "Which sounds are there, and who speaks?"))
    ]
    one, two, both = (
        audio_importance(parts, tiny_bundle / DECODER, some, 6, lambda _: None).entries
        for some in (clips[:1], clips[1:], clips)
    )
    parts.decoder.close()
    for name, entry in both.items():
        assert entry.rows == one[name].rows + two[name].rows
        np.testing.assert_allclose(entry.sums, one[name].sums + two[name].sums, rtol=1e-5)
    assert two["blk.0.attn_q.weight"].rows > one["blk.0.attn_q.weight"].rows + 4


@needs_micro
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_llama_cpp_computes_is_not_swallowed(number: signal.Signals) -> None:
    """Raised in a callback, it would be printed and forgotten, and the matrix would lack what was not computed."""
    decoder = Decoder.open(MICRO, EngineSettings())
    seen: list[str] = []

    def see(name: str, _: object) -> None:
        seen.append(name)
        if len(seen) == 3:
            signal.raise_signal(number)

    class StoppedError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StoppedError

    before = signal.signal(number, stop)
    try:
        decoder.watch(Watch(lambda _: True, see))
        with pytest.raises(StoppedError):
            decoder.prefill([(1, 2, 3)])
        assert len(seen) == 3
        assert signal.getsignal(number) is stop
        decoder.watch(None)
        decoder.prefill([(1, 2, 3)])
    finally:
        signal.signal(number, before)
        decoder.close()
