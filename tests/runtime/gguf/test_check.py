"""Nothing reaches llama.cpp but what the exporter and the quantizer write."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.bundle.manifest import DecoderFacts, read_manifest
from dasheng_edge.runtime.engine_options import EngineSettings
from dasheng_edge.runtime.errors import DecoderError, GgufError
from dasheng_edge.runtime.gguf.check import check_gguf
from dasheng_edge.runtime.gguf.header import read_header
from dasheng_edge.runtime.text.decoder import Decoder
from tests.fixtures.raw_gguf import ARRAY, STRING, Key, RawGguf

BUNDLE = Path(__file__).resolve().parents[2] / "fixtures" / "bundle"
U32, I32, F32, BOOL, U64 = 4, 5, 6, 7, 10
TOKENS, TYPES, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"
Change = Callable[[RawGguf], object]


@pytest.fixture(scope="module")
def facts() -> DecoderFacts:
    decoder = read_manifest(BUNDLE).decoder
    assert decoder is not None
    return decoder


@pytest.fixture(scope="module")
def content() -> bytes:
    return (BUNDLE / DECODER).read_bytes()


def written(tmp_path: Path, content: bytes, change: Change = lambda _: None) -> Path:
    gguf = RawGguf.parse(content)
    change(gguf)
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf.content())
    return path


def key(name: str, kind: int, value: object) -> Change:
    return lambda gguf: gguf.set(name, kind, value)


def item(name: str, index: int, value: object) -> Change:
    def change(gguf: RawGguf) -> None:
        gguf.keys[name].value[1][index] = value

    return change


def tensor(which: str, **changes: object) -> Change:
    return lambda gguf: gguf.tensor(which).__dict__.update(changes)


def test_a_decoder_is_allowed_with_its_manifest_and_without(
    content: bytes, facts: DecoderFacts, tmp_path: Path
) -> None:
    path = written(tmp_path, content)
    assert path.read_bytes() == content
    check_gguf(path, facts)
    check_gguf(path)


REFUSED: dict[str, tuple[Change, str]] = {
    **{
        f"{name} is not known": (key(f"qwen2.{name}", U32, 1), "which is not one of a decoder")
        for name in ("expert_count", "expert_used_count", "expert_group_count", "nextn_predict_layers", "x",
                     "attention.sliding_window", "pooling_type", "embedding_length_out")
    },
    "another architecture": (key("general.architecture", STRING, b"qwen2vl"), "is a qwen2vl model; expected one of"),
    "a split file": (key("split.count", 2, 3), "which is not one of a decoder"),
    "a size of another type": (key("qwen2.block_count", U64, 2), "as type 10, expected uint32"),
    "an array of sizes": (key("qwen2.attention.head_count", ARRAY, (U32, [4, 4])), "array of uint32, expected uint32"),
    "too many layers": (key("qwen2.block_count", U32, 768), "block_count as 768, expected 1 to 512"),
    "no layers": (key("qwen2.block_count", U32, 0), "block_count as 0"),
    "no heads": (key("qwen2.attention.head_count", U32, 0), "head_count as 0"),
    "no key heads": (key("qwen2.attention.head_count_kv", U32, 0), "head_count_kv as 0"),
    "heads that do not share": (key("qwen2.attention.head_count_kv", U32, 3), "cannot share 3"),
    "keys of no width": (key("qwen2.attention.key_length", U32, 0), "key_length as 0"),
    "keys of another width": (key("qwen2.attention.key_length", U32, 8), "4 heads of width 8, expected 64"),
    "values of another width": (key("qwen2.attention.value_length", U32, 8), "heads of width 16, expected an even one"),
    "an epsilon below zero": (key("qwen2.attention.layer_norm_rms_epsilon", F32, -1.0), "epsilon as -1.0"),
    "an epsilon of zero": (key("qwen2.attention.layer_norm_rms_epsilon", F32, 0.0), "epsilon as 0.0"),
    "an epsilon that is none": (key("qwen2.attention.layer_norm_rms_epsilon", F32, float("nan")), "expected a finite"),
    "no rotation": (key("qwen2.rope.freq_base", F32, 0.0), "rope.freq_base as 0.0"),
    "another size of the vocabulary": (key("qwen2.vocab_size", U32, 447), "vocab_size as 447, and has 448 tokens"),
    "another tokenizer": (key("tokenizer.ggml.model", STRING, b"llama"), "model as 'llama', expected 'gpt2'"),
    "no tokenizer": (key("tokenizer.ggml.model", STRING, b"none"), "model as 'none', expected 'gpt2'"),
    "another way to cut": (key("tokenizer.ggml.pre", STRING, b"gpt-2"), "pre as 'gpt-2', expected 'qwen2'"),
    "an id that is no token": (key("tokenizer.ggml.bos_token_id", U32, 448), "bos_token_id as 448, and has 448"),
    "a token twice": (lambda gguf: item(TOKENS, 5, gguf.keys[TOKENS].value[1][6])(gguf), "has a token twice"),
    "an empty token": (item(TOKENS, 5, b""), "or an empty one"),
    "a token with a zero": (item(TOKENS, 5, b"a\0b"), "that are not plain text"),
    "a token that is no text": (item(TOKENS, 5, b"\xff"), "that are not plain text"),
    "a token more": (lambda gguf: gguf.keys[TOKENS].value[1].append(b"new"), "tokens 449, expected 448|has 449 tokens"),
    "tokens that are numbers": (key(TOKENS, ARRAY, (I32, [1])), "as array of int32, expected array of text"),
    "a byte token": (item(TYPES, 5, 6), "expected one of 1, 3, 4 and 5"),
    "a type too few": (lambda gguf: gguf.keys[TYPES].value[1].pop(), "448 tokens and 447 types"),
    "a long special token": (lambda gguf: (item(TOKENS, 5, b"x" * 300)(gguf), item(TYPES, 5, 3)(gguf)), "special"),
    "a merge of one token": (item(MERGES, 5, b"ab"), "a merge that is not two tokens"),
    "a merge of nothing": (item(MERGES, 5, b""), "a merge that is not two tokens"),
    "a long template": (key("tokenizer.chat_template", STRING, b"x" * 70_000), "a chat template of 70000"),
    "a name that is no text": (key("general.name", STRING, b"\xff"), "not plain text"),
    "another alignment": (key("general.alignment", U32, 64), "an alignment of 64 bytes"),
    "a matrix of integers": (tensor("blk.1.attn_output.weight", kind=25), "as type 25"),
    "a norm of integers": (tensor("blk.0.attn_norm.weight", kind=26), "as type 26"),
    "a norm in F16": (tensor("blk.0.attn_norm.weight", kind=1), "as type 1"),
    "rows that a block does not divide": (tensor("blk.0.attn_q.weight", kind=12), "as type 12"),
    "another shape": (tensor("blk.0.attn_q.weight", shape=[64, 65]), r"shape \(64, 65\), expected \(64, 64\)"),
    "a flat matrix": (tensor("blk.0.attn_q.weight", shape=[4096]), r"shape \(4096,\), expected \(64, 64\)"),
    "a third dimension": (tensor("blk.0.attn_q.weight", shape=[64, 64, 1]), r"shape \(64, 64, 1\), expected"),
    "no dimension": (tensor("blk.0.attn_q.weight", shape=[]), "a tensor of 0 dimensions"),
    "an endless dimension": (tensor("output.weight", shape=[2**63, 2**63]), "expected"),
    "a tensor of another kind": (tensor("blk.0.attn_q.weight", name="blk.0.attn_qkv.weight"), "none of a decoder"),
    "a layer that is not": (tensor("blk.0.attn_q.weight", name="blk.9.attn_q.weight"), "none of a decoder"),
    "a tensor twice": (tensor("blk.0.attn_q.weight", name="blk.0.attn_k.weight"), "is there twice"),
    "a tensor elsewhere": (tensor("blk.0.attn_q.weight", offset=0), "at 0, expected"),
    "a tensor outside": (lambda gguf: setattr(gguf, "data", gguf.data[:-4096]), "is truncated"),
    "a tensor less": (lambda gguf: gguf.tensors.pop(), "lacks the tensor"),
    "a key twice": (lambda gguf: gguf.more.append(("general.name", Key(STRING, b"x"))), "is there twice"),
    "a value of no type": (key("general.name", 99, 1), "a value of type 99"),
    "an array of arrays": (lambda gguf: gguf.set(TOKENS, ARRAY, (ARRAY, [])), "a value of type 9"),
    "more keys than bytes": (lambda gguf: setattr(gguf, "counts", (1, 2**60)), "keys, expected at most"),
    "more tensors than bytes": (lambda gguf: setattr(gguf, "counts", (2**60, 1)), "tensors and 1 keys"),
    "another version": (lambda gguf: setattr(gguf, "version", 2), "not a GGUF file of version 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, content: bytes, facts: DecoderFacts, tmp_path: Path) -> None:
    change, message = REFUSED[case]
    path = written(tmp_path, content, change)
    with pytest.raises(GgufError, match=message):
        check_gguf(path, facts)
    with pytest.raises(GgufError):  # without a manifest, too
        check_gguf(path)


@pytest.mark.parametrize("name", sorted(RawGguf.parse((BUNDLE / DECODER).read_bytes()).keys))
def test_each_key_has_one_type_and_most_are_needed(
    name: str, content: bytes, facts: DecoderFacts, tmp_path: Path
) -> None:
    with pytest.raises(GgufError, match=r"expected|is a nameless model"):
        check_gguf(written(tmp_path, content, key(name, 0, 1)), facts)
    optional = name.startswith("general.") or name.endswith(
        ("_id", "add_bos_token", "template", "freq_base", "vocab_size")
    )
    path = written(tmp_path, content, lambda gguf: gguf.keys.pop(name))
    if optional and name != "general.architecture":
        check_gguf(path, facts)
    else:
        with pytest.raises(GgufError):
            check_gguf(path, facts)


@pytest.mark.parametrize(
    ("fact", "value"),
    [("arch", "qwen3"), ("hidden_size", 128), ("layers", 3), ("vocab_size", 449), ("context_length", 4097)],
)
def test_the_manifest_must_agree(fact: str, value: object, content: bytes, facts: DecoderFacts, tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="is not what the manifest describes"):
        check_gguf(written(tmp_path, content), facts.model_copy(update={fact: value}))


OTHERS: dict[str, tuple[int, object]] = {  # what llama.cpp's converter and those who quantize with it write
    "general.organization": (STRING, b"Qwen"), "general.datasets": (ARRAY, (STRING, [b"a"])), "mine.version": (U64, 1),
    "quantize.imatrix.chunks_count": (I32, 5), "qwen2.rope.dimension_count": (U32, 16),
    "qwen2.rope.scaling.type": (STRING, b"yarn"), "qwen2.rope.scaling.factor": (F32, 4.0),
    "tokenizer.ggml.add_eos_token": (BOOL, False), "tokenizer.chat_template.tools": (STRING, b"x"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_files_without_a_manifest_may_say_more(name: str, content: bytes, facts: DecoderFacts, tmp_path: Path) -> None:
    path = written(tmp_path, content, key(name, *OTHERS[name]))
    check_gguf(path)
    decoder = Decoder.open(path, EngineSettings(), n_ctx=256)
    decoder.prefill([(1, 2, 3)])
    decoder.close()
    with pytest.raises(GgufError):
        check_gguf(path, facts)


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("rope.dimension_count", U32, 0),
        ("rope.scaling.type", STRING, b"x"),
        ("rope.scaling.type", STRING, b""),
        ("rope.scaling.factor", F32, -1.0),
    ],
)
def test_their_keys_have_ranges_too(name: str, kind: int, value: object, content: bytes, tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="expected"):
        check_gguf(written(tmp_path, content, key(f"qwen2.{name}", kind, value)))


def test_any_damage_is_an_error_of_ours(content: bytes, facts: DecoderFacts, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    header, generator, refused = read_header(path).data, random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(content[:header]) + content[header:]
        for _ in range(generator.choice((1, 1, 4))):
            place = generator.randrange(header - 8)
            long = generator.choice((0, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
            change = generator.choice((bytes([generator.randrange(256)]), struct.pack("<Q", long)))
            damaged[place : place + len(change)] = change
        path.write_bytes(damaged[: generator.randrange(header)] if generator.random() < 0.2 else damaged)
        try:
            check_gguf(path, facts)
        except GgufError:
            refused += 1
    assert 100 < refused < 200  # a few hit the letters of a token


@pytest.mark.parametrize("size", [0, 1, 7, 8, 23, 24])
def test_stumps(size: int, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content[:size])
    with pytest.raises(GgufError, match=r"not a GGUF file|truncated"):
        check_gguf(tmp_path / "x.gguf")


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["token_embd.weight", "output.weight", "blk.0.attn_q.weight", "output_norm.weight"])
def test_weights_that_are_no_numbers_are_an_error_when_they_are_used(
    name: str, weight: float, content: bytes, facts: DecoderFacts, tmp_path: Path
) -> None:
    path = written(tmp_path, content)
    size = RawGguf.parse(content).tensor(name)
    start = read_header(path).data + size.offset
    count = size.shape[0] * (size.shape[1] if len(size.shape) > 1 else 1)
    path.write_bytes(content[:start] + struct.pack("<f", weight) * count + content[start + 4 * count :])
    decoder = Decoder.open(path, EngineSettings(), n_ctx=256, facts=facts)
    try:
        decoder.prefill([(1, 2, 3)])
        with pytest.raises(DecoderError, match="computed NaN or infinity"):
            list(decoder.generate(1))
    finally:
        decoder.close()
