"""A checkpoint of a published model's shapes, names and files with random weights, written in little memory.

    python -m benchmarks.synthetic.checkpoint 7b build/synthetic-7b --dtype bf16

It exercises everything that depends on size; it captions nothing. The last line is JSON: tensors, parameters by
part and bytes, which equal the published ones.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeElapsedColumn, TransferSpeedColumn

from benchmarks.places import DATA
from benchmarks.synthetic.shapes import (
    Architecture,
    Dtype,
    Edition,
    Name,
    Shape,
    architecture,
    config,
    parameters,
    shapes,
)
from benchmarks.synthetic.tokenizer import AudioIds, write_tokenizer
from benchmarks.synthetic.weights import tensor_bytes
from dasheng_edge.runtime.atomic_output import replacing

TOKENIZER = DATA / "qwen2_5_omni_tokenizer"
MAX_SHARD_BYTES = 5_000_000_000  # as transformers cuts
HEADER_BYTES = 1 << 20  # of tokenizer, configuration and headers, at most about 16 times that
_WIDTH = {"bf16": 2, "fp32": 4}
_SAFETENSORS_DTYPE = {"bf16": "BF16", "fp32": "F32"}
_COUNTER = "num_batches_tracked"  # the only integers, int64


@dataclass(frozen=True)
class Request:
    """One checkpoint to write."""

    model: Architecture
    out: Path
    dtype: Dtype
    seed: int = 0
    tokenizer: Path | None = TOKENIZER  # a small stand-in where it is missing
    max_shard_bytes: int = MAX_SHARD_BYTES
    hollow: bool = False  # zeros that take no room, for what asks for shapes alone


@dataclass(frozen=True)
class Written:
    """What was written."""

    tensors: int
    parameters: Mapping[str, int]  # by part, trained values only
    tensor_bytes: int
    shards: int
    seconds: float


def write_checkpoint(request: Request, advance: Callable[[int], object] = int) -> Written:
    """Write it; `advance` is told the bytes of each block.

    Raises:
        FileExistsError: there is something at `out`.
        OSError: there is too little room, or a write failed; nothing is left behind.
    """
    start = time.perf_counter()
    out = request.out.resolve()
    stored = shapes(request.model)
    total = sum(_bytes(name, shape, request.dtype) for name, shape in stored.items())
    if out.exists():
        raise FileExistsError(f"{request.out} already exists; remove it or choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    needed, free = (0 if request.hollow else total) + 16 * HEADER_BYTES, shutil.disk_usage(out.parent).free
    if free < needed:
        raise OSError(
            f"{request.out} takes {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB left; free some or "
            "choose another disk"
        )
    with replacing(out) as folder:
        folder.mkdir()
        _write_side_files(folder, request)
        shards = _write_shards(folder, request, stored, advance)
    return Written(len(stored), parameters(stored), total, shards, time.perf_counter() - start)


def _bytes(name: str, shape: Shape, dtype: Dtype) -> int:
    return 8 if name.endswith(_COUNTER) else math.prod(shape) * _WIDTH[dtype]


def _shards(stored: Mapping[str, Shape], dtype: Dtype, largest: int) -> list[dict[str, Shape]]:
    """Tensors in their order, a new shard where the next one would exceed the largest size."""
    shards: list[dict[str, Shape]] = [{}]
    size = 0
    for name, shape in stored.items():
        size += _bytes(name, shape, dtype)
        if size > largest and shards[-1]:
            shards.append({})
            size = _bytes(name, shape, dtype)
        shards[-1][name] = shape
    return shards


def _write_shards(folder: Path, request: Request, stored: Mapping[str, Shape], advance: Callable[[int], object]) -> int:
    parts = _shards(stored, request.dtype, request.max_shard_bytes)
    files = [f"model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    if len(parts) == 1:
        files = ["model.safetensors"]
    for file, part in zip(files, parts, strict=True):
        _write_shard(folder / file, part, request, advance)
    if len(parts) > 1:
        total = sum(_bytes(name, shape, request.dtype) for name, shape in stored.items())
        weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(folder / "model.safetensors.index.json", index)
    return len(parts)


def _write_shard(path: Path, part: Mapping[str, Shape], request: Request, advance: Callable[[int], object]) -> None:
    """The safetensors format: bytes of the header (u64), the header as JSON, padded to 8, and the tensors."""
    ordered = sorted(part, key=lambda name: (not name.endswith(_COUNTER), name))  # int64 first, so all are aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in ordered:
        start, end = end, end + _bytes(name, part[name], request.dtype)
        kind = "I64" if name.endswith(_COUNTER) else _SAFETENSORS_DTYPE[request.dtype]
        header[name] = {"dtype": kind, "shape": list(part[name]), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if request.hollow:
            file.truncate(file.tell() + end)
            return
        for block in _blocks(ordered, part, request):
            file.write(block)
            advance(len(block))


def _blocks(ordered: Sequence[str], part: Mapping[str, Shape], request: Request) -> Iterator[memoryview]:
    for name in ordered:
        for block in tensor_bytes(name, part[name], request.model, dtype=request.dtype, seed=request.seed):
            yield block.reshape(-1).view(np.uint8).data


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_side_files(folder: Path, request: Request) -> None:
    if (text := request.model.decoder) is None:
        _write_json(folder / "config.json", config(request.model, None, request.dtype))
        _write_json(folder / "preprocessor_config.json", _DASHENG_FEATURES)
        return
    ids = write_tokenizer(folder, text.arch, request.tokenizer, text.rows)
    _write_json(folder / "config.json", config(request.model, ids.audio, request.dtype))
    _write_json(folder / "generation_config.json", _generation(text.arch, ids))
    _write_json(folder / "preprocessor_config.json", _SPEECH_FEATURES)


def _generation(arch: str, ids: AudioIds) -> dict[str, Any]:
    """Greedy for the 7B; for the 0.6B what its model card samples with."""
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 50, "top_p": 0.8} if arch == "qwen3" else {}
    stops = {"eos_token_id": [ids.im_end, ids.end_of_text], "pad_token_id": ids.end_of_text}
    return {"do_sample": False, **sampling, **stops, "max_new_tokens": 128}


_SPEECH_FEATURES = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor", "processor_class": "MiDashengLMProcessor",
    "feature_size": 1, "sampling_rate": 16000, "do_normalize": False, "padding_side": "right",
    "padding_value": 0.0, "return_attention_mask": True,
}  # fmt: skip
_DASHENG_FEATURES = {
    "feature_extractor_type": "DashengFeatureExtractor", "feature_size": 64, "sampling_rate": 16000,
    "f_min": 0, "f_max": 8000, "n_fft": 512, "win_size": 512, "hop_size": 160, "center": True,
    "padding_side": "right", "padding_value": 0.0, "return_attention_mask": False,
}  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="synthetic_checkpoint", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", choices=get_args(Name))
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    parser.add_argument("--dtype", choices=get_args(Dtype), help="default: as the repository that people take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--edition", choices=get_args(Edition), default="1021", help="of the 7B; 0804 stores mel buffers"
    )
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="Qwen2.5-Omni's, in the Hugging Face layout")
    parser.add_argument("--layers", type=int, help="at most so many encoder blocks and decoder layers, for a quick try")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if the checkpoint cannot be written."""
    given = _parser().parse_args(arguments)
    model = architecture(given.model, given.edition)
    if given.layers:
        model = model.shrunken(given.layers)
    request = Request(model, given.out, given.dtype or model.dtype, given.seed, given.tokenizer)
    total = sum(_bytes(name, shape, request.dtype) for name, shape in shapes(model).items())
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(given.model, total=total)
            written = write_checkpoint(request, lambda size: progress.advance(task, size))
    except OSError as error:
        print(f"synthetic_checkpoint: {error}", file=sys.stderr)
        return 1
    gigabytes, parts = written.tensor_bytes / 1e9, ", ".join(f"{n} {v:,}" for n, v in written.parameters.items())
    print(f"{given.out}: {written.tensors} tensors, {gigabytes:.2f} GB in {written.shards} files; {parts}")
    facts = {
        "model": given.model, "edition": given.edition, "dtype": request.dtype, "seed": given.seed,
        "tensors": written.tensors, "parameters": dict(written.parameters), "bytes": written.tensor_bytes,
        "shards": written.shards, "seconds": round(written.seconds, 1),
    }  # fmt: skip
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
