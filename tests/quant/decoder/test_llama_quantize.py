"""llama.cpp's quantizer in its own process: it can be stopped, and says what went wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from dasheng_edge.quant.decoder import llama_quantize as quantizer
from dasheng_edge.quant.decoder.llama_quantize import quantize
from dasheng_edge.quant.decoder.types import DecoderOptions
from dasheng_edge.runtime.errors import ExportError, LlamaQuantizeError, OutputWriteError, QuantizeError
from tests.fixtures.full_disk import largest_file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of 5 MB, as much of it as the quantizer looks at."""
    path = tmp_path_factory.mktemp("whole") / "decoder.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    sizes = {"context_length": 256, "embedding_length": 256, "feed_forward_length": 256, "block_count": 1}
    for name, size in {**sizes, "attention.head_count": 1, "attention.head_count_kv": 1}.items():
        writer.add_uint32(f"qwen2.{name}", size)
    writer.add_layer_norm_rms_eps(1e-6)
    generator = np.random.default_rng(0)
    for i in range(20):
        writer.add_tensor(f"blk.{i}.ffn_up.weight", generator.normal(size=(256, 256)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_each_tensor_is_told(whole: Path, tmp_path: Path) -> None:
    begun: list[int] = []
    quantize(whole, tmp_path / "x.gguf", DecoderOptions("Q8_0"), threads=1, advance=begun.append)

    assert begun == [1] * 20
    assert (tmp_path / "x.gguf").stat().st_size < whole.stat().st_size / 3


def test_what_llama_cpp_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(
        LlamaQuantizeError, match=r"could not quantize the decoder to Q8_0: .*fail.*; try another --decoder"
    ):
        quantize(tmp_path / "broken.gguf", tmp_path / "x.gguf", DecoderOptions("Q8_0"))
    assert not (tmp_path / "x.gguf").exists()


def test_a_full_disk_is_an_output_error(whole: Path, tmp_path: Path) -> None:
    with (
        largest_file(200_000),
        pytest.raises(OutputWriteError, match=r"cannot write x\.gguf: .*free some space or choose another --out"),
    ):
        quantize(whole, tmp_path / "x.gguf", DecoderOptions("Q8_0"), threads=1)
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells who the children are")
def test_a_child_that_is_killed_is_an_error(whole: Path, tmp_path: Path) -> None:
    def kill(_: int) -> None:
        for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text("ascii").split():
            os.kill(int(child), signal.SIGKILL)

    with pytest.raises(LlamaQuantizeError, match="could not quantize the decoder to Q4_K_M: its process ended with -9"):
        quantize(whole, tmp_path / "x.gguf", DecoderOptions("Q4_K_M"), threads=1, advance=kill)
    assert not (tmp_path / "x.gguf").exists()


def test_an_interruption_ends_the_child_and_leaves_nothing(whole: Path, tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(whole, tmp_path / "x.gguf", DecoderOptions("Q4_K_M"), threads=1, advance=interrupt)
    assert not (tmp_path / "x.gguf").exists()


def test_the_child_ends_with_its_parent(whole: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "slow")  # the child waits here for a reader, as it would work for minutes
    request = quantizer.Request(str(whole), str(tmp_path / "slow"), file_type=7, threads=1)
    command = [sys.executable, "-m", quantizer.__name__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert json.loads(child.stdout.readline()) == {"ready": True}
        child.stdin.write(json.dumps(dataclasses.asdict(request)).encode() + b"\n")
        child.stdin.flush()
        time.sleep(1)
        assert child.poll() is None
        child.stdin.close()  # what the parent's end does
        assert child.wait(timeout=20) == 1


def test_who_exports_and_who_quantizes_may_both_catch_it() -> None:
    assert issubclass(LlamaQuantizeError, ExportError)
    assert issubclass(LlamaQuantizeError, QuantizeError)
