"""What a GGUF file must be before llama.cpp loads it, which ends the process over much that is wrong in one.

Allowed is what the exporter and llama.cpp's quantizer write of Qwen2 and Qwen3; everything else is refused. A bundle's
decoder must agree with its manifest, too. A file without a manifest may also hold what llama.cpp's converter and
others write beside that: keys that llama.cpp does not read, and a scaled rotation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

from dasheng_edge.runtime.bundle.manifest import DecoderFacts
from dasheng_edge.runtime.errors import GgufError

from .header import ALIGNMENT, BOOL, FLOAT32, INT32, STRING, UINT32, Header, read_header

ARCHITECTURES = ("qwen2", "qwen3")  # one position per row; qwen2vl and its kind need four
# Values and bytes of a block, by enum ggml_type: what matrices are stored in, by the exporter and by `quant.decoder`.
BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 30: (1, 2),  # F32, F16, BF16
    2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),  # Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),  # Q2_K to Q6_K
    16: (256, 66), 17: (256, 74), 18: (256, 98), 20: (32, 18),  # IQ2_XXS, IQ2_XS, IQ3_XXS, IQ4_NL
    21: (256, 110), 22: (256, 82), 23: (256, 136),  # IQ3_S, IQ2_S, IQ4_XS
}  # fmt: skip
F32 = 0  # of vectors, always: some of llama.cpp's operators take nothing else
MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
MAX_SIZE = 1 << 24  # of a dimension and of the context: positions and rows are 32-bit numbers in llama.cpp
MAX_TEMPLATE_LENGTH = 1 << 16  # characters; the longest published chat templates have 20,000
MAX_SPECIAL, MAX_SPECIAL_BYTES = 1 << 12, 256  # tokens that a prompt is searched for, and the length of one
TOKEN_KINDS = frozenset({1, 3, 4, 5})  # normal, control, user-defined, unused; byte tokens belong to other tokenizers
SPECIAL_KINDS = frozenset({3, 4})

TOKENS, TOKEN_TYPES, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"
TEMPLATE = "tokenizer.chat_template"
_TOKENIZER = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2"}  # byte-level BPE, cut as Qwen2 does
_TOKEN_IDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "eom", "padding"))
_SIZES = ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count")
_OTHER_SIZES = ("attention.head_count_kv", "attention.key_length", "attention.value_length", "vocab_size")
_EPSILON, _BASE = "attention.layer_norm_rms_epsilon", "rope.freq_base"

_Kind = tuple[int, bool]  # enum gguf_type, and whether it is an array
_TEXT, _TEXTS, _SIZE, _REAL, _FLAG = (STRING, False), (STRING, True), (UINT32, False), (FLOAT32, False), (BOOL, False)
_ORIGIN = ("name", "organization", "repo_url", "version")  # of a base model, which has a number
_COMMON: Mapping[str, _Kind] = {
    **dict.fromkeys(
        (f"general.{key}" for key in ("architecture", "type", "name", "basename", "finetune", "version", "size_label",
                                      "license", "license.name", "license.link",
                                      *(f"base_model.#.{key}" for key in _ORIGIN))), _TEXT
    ),
    **dict.fromkeys(("general.tags", "general.languages"), _TEXTS),
    **dict.fromkeys(
        (f"general.{key}" for key in ("file_type", "quantization_version", "alignment", "base_model.count")), _SIZE
    ),
    **dict.fromkeys((f"general.sampling.{key}" for key in ("temp", "penalty_repeat", "top_p", "min_p")), _REAL),
    "general.sampling.top_k": (INT32, False),
    **dict.fromkeys((*_TOKENIZER, TEMPLATE), _TEXT), **dict.fromkeys(_TOKEN_IDS, _SIZE),
    "tokenizer.ggml.add_bos_token": _FLAG, TOKENS: _TEXTS, MERGES: _TEXTS, TOKEN_TYPES: (INT32, True),
}  # fmt: skip
_OF_ARCHITECTURE: Mapping[str, _Kind] = {
    **dict.fromkeys((*_SIZES, *_OTHER_SIZES), _SIZE), **dict.fromkeys((_EPSILON, _BASE), _REAL),
}  # fmt: skip
_OF_QUANTIZER: Mapping[str, _Kind] = {  # what it notes about an importance matrix
    "quantize.imatrix.file": _TEXT, "quantize.imatrix.dataset": _TEXT,
    "quantize.imatrix.entries_count": _SIZE, "quantize.imatrix.chunks_count": _SIZE,
}  # fmt: skip
# Of files without a manifest: what else llama.cpp reads of these architectures ...
_OF_OTHERS: Mapping[str, _Kind] = {
    **dict.fromkeys((f"tokenizer.ggml.add_{key}" for key in ("eos_token", "sep_token", "space_prefix")), _FLAG),
    **dict.fromkeys((f"tokenizer.ggml.{key}_token_id" for key in ("unknown", "seperator", "mask")), _SIZE),
    "tokenizer.chat_templates": _TEXTS, "tokenizer.chat_template.#": _TEXT,
}  # fmt: skip
_SCALED: Mapping[str, _Kind] = {
    "rope.dimension_count": _SIZE, "rope.scaling.type": _TEXT, "rope.scaling.factor": _REAL,
    "rope.scaling.original_context_length": _SIZE, "rope.scaling.attn_factor": _REAL, "rope.scaling.finetuned": _FLAG,
}  # fmt: skip
_RANGES = (  # of reals: above, and at most
    (_EPSILON, 0.0, 1.0), (_BASE, 1.0, 1e12), ("rope.scaling.factor", 0.0, 1e6), ("rope.scaling.attn_factor", 0.0, 1e3),
)  # fmt: skip
_SCALINGS = ("none", "linear", "yarn")
# ... and how the names begin of what it reads in files of any kind. It does not know the others.
_READ = ("split.", "tokenizer.", "adapter.", "imatrix.", "general.alignment", "general.architecture")
_NUMBERED = re.compile(r"(?<=^general\.base_model\.)\d{1,3}(?=\.)|(?<=^tokenizer\.chat_template\.)\w+$")
_KIND_NAMES = {STRING: "text", BOOL: "boolean", UINT32: "uint32", INT32: "int32", FLOAT32: "float32"}


def check_gguf(path: Path, facts: DecoderFacts | None = None) -> Header:
    """The header, without its arrays, of a GGUF file that is a decoder which llama.cpp can be given.

    `facts` are those of its bundle's manifest.

    Raises:
        GgufError: it cannot be read, or holds anything but what this module's description allows.
    """
    header = read_header(path, (TOKENS, TOKEN_TYPES, MERGES))
    if (arch := header.text("general.architecture")) not in ARCHITECTURES:
        problem: str | None = f"is a {arch or 'nameless'} model; expected one of {', '.join(ARCHITECTURES)}"
    else:
        problem = next(_problems(header, arch, facts), None)
    if problem is not None:
        raise GgufError(f"{path} {problem}. llama.cpp was not given it; copy the file again, or export it again")
    return replace(header, values={key: value for key, value in header.values.items() if not value.is_array})


def _problems(header: Header, arch: str, facts: DecoderFacts | None) -> Iterator[str]:
    """What is wrong; each check relies on those before it, so only the first is sure to be right."""
    yield from _key_problems(header, arch, closed=facts is not None)
    sizes = Sizes.stated(header, arch)
    yield from _size_problems(header, arch)
    yield from _manifest_problems(header, sizes, facts)
    yield from _head_problems(header, sizes)
    yield from _token_problems(header)
    yield from _vocabulary_problems(header)
    yield from _tensor_problems(header, sizes)


def _key_problems(header: Header, arch: str, *, closed: bool) -> Iterator[str]:
    own = _OF_ARCHITECTURE if closed else {**_OF_ARCHITECTURE, **_SCALED}
    known = {
        **_COMMON,
        **{f"{arch}.{key}": kind for key, kind in own.items()},
        **(_OF_QUANTIZER if closed else _OF_OTHERS),
    }
    for key, value in header.values.items():
        kind, got = known.get(_NUMBERED.sub("#", key)), (value.kind, value.is_array)
        if kind is None and not closed and not key.startswith((f"{arch}.", *_READ)):
            continue
        if kind is None:
            yield f"has the key {key[:80]!r}, which is not one of a decoder"
        elif got != kind:
            yield f"states {key} as {_kind_name(got)}, expected {_kind_name(kind)}"
        elif isinstance(value.content, float) and not math.isfinite(value.content):
            yield f"states {key} as {value.content:g}, expected a finite number"
        elif isinstance(value.content, bytes) and not _is_plain(value.content):
            yield f"states {key} as something that is not plain text"
    required = (*_TOKENIZER, TOKENS, TOKEN_TYPES, MERGES, *(f"{arch}.{key}" for key in (*_SIZES, _EPSILON)))
    yield from (f"lacks the key {key}" for key in required if key not in header.values)


def _kind_name(kind: _Kind) -> str:
    return f"{'array of ' if kind[1] else ''}{_KIND_NAMES.get(kind[0], f'type {kind[0]}')}"


def _is_plain(text: bytes) -> bool:
    """UTF-8 without a zero, which ends a text in C."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in text


@dataclass(frozen=True)
class Sizes:
    """The sizes of a decoder."""

    arch: str
    width: int
    layers: int
    inner: int  # of the feed-forward part
    heads: int
    kv_heads: int
    head_width: int
    tokens: int

    @classmethod
    def stated(cls, header: Header, arch: str) -> Sizes:
        """As a header states them; what it need not state has llama.cpp's default."""
        width, layers, inner, heads = (
            header.number(f"{arch}.{key}")
            for key in ("embedding_length", "block_count", "feed_forward_length", "attention.head_count")
        )
        kv_heads = header.number(f"{arch}.attention.head_count_kv", heads)
        head_width = header.number(f"{arch}.attention.key_length", width // max(heads, 1))
        return cls(arch, width, layers, inner, heads, kv_heads, head_width, len(header.array(TOKENS)))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The decoder's tensors, a row's length first; `output.weight` only where it is not the embedding."""
        queries, shared = self.heads * self.head_width, self.kv_heads * self.head_width
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (self.width,), "attn_q.weight": (self.width, queries),
            "attn_k.weight": (self.width, shared), "attn_v.weight": (self.width, shared),
            "attn_output.weight": (queries, self.width), "ffn_norm.weight": (self.width,),
            "ffn_gate.weight": (self.width, self.inner), "ffn_up.weight": (self.width, self.inner),
            "ffn_down.weight": (self.inner, self.width),
        }  # fmt: skip
        if self.arch == "qwen2":
            layer |= {"attn_q.bias": (queries,), "attn_k.bias": (shared,), "attn_v.bias": (shared,)}
        else:
            layer |= dict.fromkeys(("attn_q_norm.weight", "attn_k_norm.weight"), (self.head_width,))
        table = (self.width, self.tokens)
        shapes: dict[str, tuple[int, ...]] = {
            "token_embd.weight": table, "output_norm.weight": (self.width,), "output.weight": table,
        }  # fmt: skip
        return shapes | {f"blk.{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()}


def _size_problems(header: Header, arch: str) -> Iterator[str]:
    for key in (*_SIZES, *_OTHER_SIZES):
        number, limit = header.number(f"{arch}.{key}", 1), MAX_LAYERS if key == "block_count" else MAX_SIZE
        if not 1 <= number <= limit:
            yield f"states {arch}.{key} as {number}, expected 1 to {limit}"
    for key, low, high in _RANGES:
        value = header.values.get(f"{arch}.{key}")
        if value and not (isinstance(value.content, float) and low < value.content <= high):
            yield f"states {arch}.{key} as {value.content!r}, expected more than {low:g} and at most {high:g}"
    key = f"{arch}.rope.scaling.type"
    if key in header.values and (scaling := header.text(key)) not in _SCALINGS:
        yield f"scales the rotation by {scaling!r}, expected one of {', '.join(_SCALINGS)}"


def _manifest_problems(header: Header, sizes: Sizes, facts: DecoderFacts | None) -> Iterator[str]:
    arch = sizes.arch
    if facts:
        got = (arch, sizes.width, sizes.layers, sizes.tokens)
        want = (facts.arch, facts.hidden_size, facts.layers, facts.vocab_size)
        for what, ours, stated in zip(("architecture", "width", "layers", "tokens"), got, want, strict=True):
            if ours != stated:
                yield f"is not what the manifest describes: {what} {ours}, expected {stated}"
        if (context := header.number(f"{arch}.context_length")) < facts.context_length:
            yield f"is not what the manifest describes: context {context}, expected at least {facts.context_length}"
    if (number := header.number(f"{arch}.vocab_size", sizes.tokens)) != sizes.tokens:
        yield f"states {arch}.vocab_size as {number}, and has {sizes.tokens} tokens"


def _head_problems(header: Header, sizes: Sizes) -> Iterator[str]:
    arch, heads, width = sizes.arch, sizes.heads, sizes.head_width
    if heads % sizes.kv_heads:
        yield f"has {heads} heads, which cannot share {sizes.kv_heads} of keys and values evenly"
    if arch == "qwen2" and heads * width != sizes.width:
        yield f"has {heads} heads of width {width}, expected {sizes.width} together"
    # The rotation turns pairs. Values of another width than the keys', and a part that is not rotated, are of others.
    widths = {header.number(f"{arch}.{key}", width) for key in ("attention.value_length", "rope.dimension_count")}
    if width % 2 or not width or widths != {width}:
        yield f"has heads of width {width}, expected an even one, and the same of values and the rotation"


def _token_problems(header: Header) -> Iterator[str]:
    for key, want in _TOKENIZER.items():
        if (got := header.text(key)) != want:
            yield f"states {key} as {got!r}, expected {want!r}"
    count = len(header.array(TOKENS))
    if not 1 <= count <= MAX_SIZE:
        yield f"has {count} tokens"
    for key in (*_TOKEN_IDS, *_OF_OTHERS):
        if key.endswith("_id") and header.number(key) >= count:
            yield f"states {key} as {header.number(key)}, and has {count} tokens"
    if (size := len(header.text(TEMPLATE))) > MAX_TEMPLATE_LENGTH:
        yield f"has a chat template of {size} characters, expected at most {MAX_TEMPLATE_LENGTH}"


def _vocabulary_problems(header: Header) -> Iterator[str]:
    tokens, kinds, merges = (header.array(key) for key in (TOKENS, TOKEN_TYPES, MERGES))
    if not _is_plain(b"\n".join(tokens)) or not _is_plain(b"\n".join(merges)):
        yield "has tokens or merges that are not plain text"
    if len(set(tokens)) < len(tokens) or b"" in tokens:
        yield "has a token twice, or an empty one"
    if len(kinds) != len(tokens) or not TOKEN_KINDS.issuperset(kinds):
        yield f"has {len(tokens)} tokens and {len(kinds)} types of them, expected one of 1, 3, 4 and 5 for each"
    special = list(compress(tokens, map(SPECIAL_KINDS.__contains__, kinds)))
    if len(special) > MAX_SPECIAL or max(map(len, special), default=0) > MAX_SPECIAL_BYTES:
        yield f"has {len(special)} special tokens, expected at most {MAX_SPECIAL} of at most {MAX_SPECIAL_BYTES} bytes"
    if not all(0 < merge.find(b" ", 1) < len(merge) - 1 for merge in merges):
        yield "has a merge that is not two tokens with a space between them"


def _tensor_problems(header: Header, sizes: Sizes) -> Iterator[str]:
    """Tensors of the names, shapes and types of such a decoder, one behind the other: as llama.cpp asks for it."""
    shapes, place = sizes.shapes(), 0
    for name, tensor in header.tensors.items():
        if tensor.shape != shapes.get(name):
            want = f"expected {shapes[name]}" if name in shapes else "which is none of a decoder"
            yield f"has the tensor {name[:80]!r} of shape {tensor.shape}, {want}"
        values, size = BLOCKS.get(tensor.kind, (0, 0))
        if not values or tensor.shape[0] % values or (len(tensor.shape) == 1 and tensor.kind != F32):
            yield f"stores {name} {tensor.shape} as type {tensor.kind}, expected F32, or of matrices another known one"
        if tensor.offset != place:
            yield f"has {name} at {tensor.offset}, expected {place}: directly behind the tensor before it"
        end = place + math.prod(tensor.shape) // values * size
        if header.data + end > header.size:
            yield f"is truncated: {name} ends at byte {header.data + end}, the file has {header.size}"
        place = -(-end // ALIGNMENT) * ALIGNMENT
    if missing := [name for name in shapes if name not in header.tensors and name != "output.weight"]:
        yield f"lacks the tensor {missing[0]} and {len(missing) - 1} others"
