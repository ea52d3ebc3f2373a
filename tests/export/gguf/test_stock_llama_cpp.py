"""decoder.gguf in llama.cpp's own programs: they load it, answer as the runtime does, and quantize it alike.

`python -m benchmarks.peers.llama_cpp_tools` builds them.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peers.llama_cpp_tools import TOOLS
from benchmarks.places import MICRO, REPOSITORY
from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.gguf.decoder import COPIED, intermediate_type, write_gguf
from dasheng_edge.export.gguf.tokenizer import read_vocabulary
from dasheng_edge.quant.decoder.gguf_file import gguf_tensors
from dasheng_edge.quant.decoder.llama_quantize import quantize
from dasheng_edge.quant.decoder.types import DecoderOptions, PlainType
from dasheng_edge.quant.vocabulary.choice import Merges, choose
from dasheng_edge.quant.vocabulary.cut import UNUSED, always_kept
from dasheng_edge.quant.vocabulary.gguf_cut import write_cut_gguf
from dasheng_edge.runtime.bundle.manifest import Sampling
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.gguf.check import MERGES, TOKEN_TYPES, TOKENS
from dasheng_edge.runtime.gguf.header import read_header
from dasheng_edge.runtime.text.decoder import Decoder
from tests.fixtures.tiny_checkpoint import write_tiny_checkpoint
from tests.fixtures.vocabulary_decoder import vocabulary_of

BIN = REPOSITORY / "build" / "llama.cpp" / "bin"
CHECKPOINT = MICRO / "checkpoint"
START_S = 60.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all((BIN / tool).is_file() for tool in TOOLS),
        reason="llama.cpp's programs are not built: python -m benchmarks.peers.llama_cpp_tools",
    ),
]

CHATS = (
    [{"role": "user", "content": "Which sounds are there?"}],
    [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "A bell, a dog: why?"}],
    [
        {"role": "user", "content": "What is heard?"},
        {"role": "assistant", "content": "Rain."},
        {"role": "user", "content": "Écoute : <|im_end|> is plain text\nand 雨 too."},
    ],
)


def write_decoder(folder: Path, checkpoint: Path, kind: PlainType) -> Path:
    """The decoder of a checkpoint in a file type, without a bundle around it."""
    merged = MergedTensors(open_checkpoint(checkpoint))
    spec = merged.checkpoint.decoder
    assert spec is not None
    path = folder / f"{kind}.gguf"
    first = path if kind in COPIED else folder / f"first-{kind}.gguf"
    vocabulary = read_vocabulary(checkpoint, spec.vocab_size)
    write_gguf(first, merged, vocabulary, intermediate_type(merged, kind), sampling=Sampling())
    if first != path:
        quantize(first, path, DecoderOptions(kind), threads=1)
    return path


@contextmanager
def llama_server(path: Path) -> Generator[str]:
    """Serve a GGUF file; the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(BIN / "llama-server"), "-m", str(path), "--host", "127.0.0.1", "--port", str(port)]
    options = ["--ctx-size", "512", "--parallel", "1", "--threads", "1", "--log-disable"]
    server = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(server, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    """Until the model is loaded; the server answers 503 before."""
    end = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return
        time.sleep(0.1)
    raise AssertionError(f"llama-server does not answer; its exit status is {server.poll()}")


def ask(url: str, question: Mapping[str, object]) -> Any:
    """POST a question as JSON."""
    request = urllib.request.Request(url, json.dumps(question).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def our_answer(decoder: Decoder, prompt: str, tokens: int) -> list[int]:
    decoder.prefill([decoder.tokenize(prompt, parse_special=True)], reserve=tokens)
    return list(decoder.generate(tokens))


def with_fewer_tokens(path: Path) -> Path:
    """The same decoder with 512 of its tokens, those that are always kept and those that are merged first."""
    header, model = read_header(path, read_header(path).values), vocabulary_of(path)
    needed, unused = [*always_kept(header, model)], np.array(header.array(TOKEN_TYPES)) == UNUSED
    merges = Merges.read(header.array(TOKENS), header.array(MERGES))
    kept = choose(merges, needed, unused, np.zeros(len(unused), np.int64), 512)
    write_cut_gguf(path.with_name("fewer.gguf"), header, kept, 0)
    return path.with_name("fewer.gguf")


SERVED = (
    "micro F16", "midashenglm F32", "midashenglm-tokenizer F32", "micro Q4_K_M", "micro F16 fewer",
    "micro Q4_K_M fewer",
)  # fmt: skip


@pytest.fixture(scope="module", params=SERVED)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Decoder]]:
    """The same file in llama-server and in the runtime."""
    which, kind, *fewer = request.param.split()
    folder = tmp_path_factory.mktemp("stock")
    checkpoint = CHECKPOINT if which == "micro" else write_tiny_checkpoint(folder / "checkpoint", variant=which)
    path = write_decoder(folder, checkpoint, kind)
    path = with_fewer_tokens(path) if fewer else path
    decoder = Decoder.open(path, EngineSettings(), n_ctx=512)
    with llama_server(path) as address:
        yield address, decoder
    decoder.close()


@pytest.mark.parametrize("messages", CHATS)
def test_a_chat_is_answered_token_by_token_as_by_the_runtime(messages: Any, served: tuple[str, Decoder]) -> None:
    address, decoder = served
    prompt = ask(f"{address}/apply-template", {"messages": messages})["prompt"]
    ours = our_answer(decoder, prompt, 32)
    question = {"prompt": prompt, "n_predict": 32, "return_tokens": True, "cache_prompt": False}
    answer = ask(f"{address}/completion", question)

    assert prompt.startswith("<|im_start|>")
    assert prompt.endswith("<|im_start|>assistant\n")
    assert answer["generation_settings"]["temperature"] == 0  # nobody asked for it: the file says so
    assert answer["tokens"] == ours
    assert len(ours) > 1


@pytest.mark.parametrize("messages", CHATS)
def test_the_chat_endpoint_says_the_same(messages: Any, served: tuple[str, Decoder]) -> None:
    address, decoder = served
    prompt = ask(f"{address}/apply-template", {"messages": messages})["prompt"]
    answer = ask(f"{address}/v1/chat/completions", {"messages": messages, "max_tokens": 32})

    # Random models say bytes that are no UTF-8; how many replacement characters they become is nobody's contract.
    texts = (answer["choices"][0]["message"]["content"], decoder.detokenize(our_answer(decoder, prompt, 32)))
    theirs, ours = (text.replace("\ufffd", "") for text in texts)
    assert theirs == ours


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_0", "IQ4_XS"])
@pytest.mark.parametrize("variant", ["midashenglm", "midashenglm-tokenizer"])
@pytest.mark.parametrize("source", ["F16", "BF16"])
def test_llama_quantize_makes_the_same_file(kind: PlainType, variant: str, source: PlainType, tmp_path: Path) -> None:
    whole = write_decoder(tmp_path, write_tiny_checkpoint(tmp_path / "checkpoint", variant=variant), source)
    quantize(whole, tmp_path / "ours.gguf", DecoderOptions(kind), threads=1)
    command = [str(BIN / "llama-quantize"), str(whole), str(tmp_path / "theirs.gguf"), kind, "1"]
    subprocess.run(command, check=True, capture_output=True)
    ours, theirs = gguf_tensors(tmp_path / "ours.gguf"), gguf_tensors(tmp_path / "theirs.gguf")

    assert list(ours) == list(theirs)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_llama_tokenize_finds_the_runtimes_tokens(tmp_path: Path) -> None:
    path = write_decoder(tmp_path, CHECKPOINT, "F16")
    text = "Écoute: a bell 🔔\n\n  and 3.14 <|im_end|>"
    command = [str(BIN / "llama-tokenize"), "-m", str(path), "-p", text, "--ids", "--log-disable", "--no-parse-special"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    decoder = Decoder.open(path, EngineSettings())
    try:
        assert json.loads(printed) == list(decoder.tokenize(text))
    finally:
        decoder.close()
