"""Fills a skeleton with random weights: bundles of true shape in seconds, in 8 threads, with numpy alone.

    python -m benchmarks.gpu.assemble build/gpu/7b /dev/shm/7b

Bundles with an encoder in fp16: OUT/F16 and OUT/Q4_K_M. Values keep what flows through the model in its usual range;
the rows of the head that would end an answer are zero, so that answers have the length that is asked for.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FACTS, THREADS = "skeleton.json", 8
TILE = 1 << 24  # values that are drawn; tensors read them from different places
STEP = 1 << 22  # values that are made at a time
SPREAD = 4.3  # standard deviations, at most
SCALES = {"Q4_K": (144, (0, 2)), "Q6_K": (210, (208,))}  # bytes of a block of 256, and where its float16 scales are
CODES = {"Q4_K": 12, "Q6_K": 14}  # enum ggml_type
ROWS = 1021  # of a quantized tile; prime, so that tensors do not repeat each other
BEFORE_SUM = ("attn.proj", "mlp.fc2", "attn_output", "ffn_down")  # what is added to the stream that runs through blocks
Values = NDArray[Any]


def spread(name: str, shape: Sequence[int], depth: int, *, inputs_first: bool) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's values."""
    if "token_embd" in name:
        return 0.0, 0.3
    if "pos_embed" in name:
        return 0.0, 0.1
    branch = 1 / math.sqrt(2 * depth) if any(part in name for part in BEFORE_SUM) else 1.0
    if sum(size != 1 for size in shape) <= 1:
        return (1.0 if "norm" in name and "weight" in name else 0.0), 0.1 * branch
    inputs = shape[0] if inputs_first else math.prod(shape[1:])
    return 0.0, branch / math.sqrt(inputs)


class Weights:
    """Random values, drawn once."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.tile = generator.standard_normal(TILE, dtype=np.float32).clip(-SPREAD, SPREAD)

    def values(self, count: int, mean: float, std: float, dtype: str, start: int) -> Values:
        """[count], a piece of the tile that starts anywhere."""
        pieces, place = [], start % TILE
        while count:
            piece = self.tile[place : place + min(count, TILE - place)]
            pieces.append((piece * np.float32(std) + np.float32(mean)).astype(dtype))
            count, place = count - len(piece), 0
        return np.concatenate(pieces)

    def blocks(self, kind: str, std: float, tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Quantized blocks [blocks, bytes] of another standard deviation: their scales are multiplied."""
        scaled = tile.copy()
        for place in SCALES[kind][1]:
            halves = tile[:, place : place + 2].copy().view(np.float16).astype(np.float32) * std
            scaled[:, place : place + 2] = halves.astype(np.float16).view(np.uint8).reshape(-1, 2)
        return scaled

    def quantized(self) -> dict[str, NDArray[np.uint8]]:
        """Blocks [blocks, bytes] of standard deviation 1 in each quantized type, by llama.cpp's own quantizer."""
        source = np.ascontiguousarray(self.tile[: ROWS * 2048])
        quantize = _ggml().ggml_quantize_chunk
        quantize.restype = ctypes.c_size_t
        quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
        tiles = {}
        for kind, (size, _) in SCALES.items():
            blocks = np.zeros((ROWS * 2048 // 256, size), np.uint8)
            written = quantize(CODES[kind], source.ctypes.data, blocks.ctypes.data, 0, ROWS, 2048, None)
            assert written == blocks.nbytes, (kind, written)
            tiles[kind] = blocks
        return tiles


def _ggml() -> ctypes.CDLL:
    found = find_spec("llama_cpp")
    assert found is not None
    assert found.origin is not None
    (library, *_) = sorted(Path(found.origin).parent.glob("lib/libggml-base*"))
    return ctypes.CDLL(str(library))


def write_all(descriptor: int, values: Values, place: int) -> None:
    """Write at a place of a file; one call writes 2 GiB at most."""
    view = np.ascontiguousarray(values).data.cast("B")
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], place + done)


def fill_table(path: Path, places: Mapping[str, Any], depth: int, weights: Weights) -> None:
    """The file of weights beside a graph."""
    sizes = {name: np.dtype(_dtype(kind)).itemsize * math.prod(shape) for name, (_, kind, shape) in places.items()}
    with path.open("wb") as file:
        file.truncate(max(place + sizes[name] for name, (place, *_) in places.items()))
        descriptor = file.fileno()

        def one(item: tuple[int, tuple[str, Any]]) -> None:
            index, (name, (place, kind, shape)) = item
            mean, std = spread(name, shape, depth, inputs_first=len(shape) == 2)
            drawn = weights.values(math.prod(shape), mean, std, _dtype(kind), index * 7919 * 4099)
            write_all(descriptor, drawn, place)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(one, enumerate(places.items())))


def _dtype(kind: str) -> str:
    return {"FLOAT": "float32", "FLOAT16": "float16", "F32": "float32", "F16": "float16"}[kind]


def fill_gguf(path: Path, head: bytes, places: Mapping[str, Any], facts: Mapping[str, Any], weights: Weights) -> None:
    """The decoder: the header and all tensors."""
    tiles = weights.quantized() if any(kind in SCALES for _, kind, _ in places.values()) else {}
    layers = facts["shape"]["decoder"]["layers"]
    with path.open("wb") as file:
        file.write(head)
        file.flush()
        descriptor = file.fileno()

        def one(item: tuple[int, tuple[str, Any]]) -> None:
            index, (name, (place, kind, shape)) = item
            mean, std = spread(name, shape, layers, inputs_first=False)
            start, count = len(head) + place, math.prod(shape)
            if kind in SCALES:
                row_bytes = shape[1] // 256 * SCALES[kind][0]
                blocks, done, count = weights.blocks(kind, std, tiles[kind]), 0, count // 256
                first = index * 101 % len(blocks)
                while done < count:
                    piece = blocks[first : first + count - done]
                    write_all(descriptor, piece, start + done * blocks.shape[1])
                    done, first = done + len(piece), 0
            else:
                row_bytes = shape[-1] * np.dtype(_dtype(kind)).itemsize
                for done in range(0, count, STEP):
                    piece_ = weights.values(
                        min(STEP, count - done), mean, std, _dtype(kind), index * 7919 * 4099 + done
                    )
                    write_all(descriptor, piece_, start + done * piece_.itemsize)
            if name == "output.weight":
                for token in facts["ends"]:  # a logit of 0 is never the largest
                    write_all(descriptor, np.zeros(row_bytes, np.uint8), start + token * row_bytes)

        largest_first = sorted(enumerate(places.items()), key=lambda item: -math.prod(item[1][1][2]))
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(one, largest_first))
        file.truncate(os.fstat(descriptor).st_size + -os.fstat(descriptor).st_size % 32)


def assemble(skeleton: Path, out: Path) -> list[Path]:
    """Write the bundles; their folders."""
    facts = json.loads((skeleton / FACTS).read_text())
    weights = Weights()
    out.mkdir(parents=True)
    for file, places in facts["tables"].items():
        fill_table(out / file, places, facts["shape"]["depth"], weights)
    bundles = []
    for kind, places in facts["heads"].items():
        folder = out / kind
        folder.mkdir()
        fill_gguf(folder / "decoder.gguf", (skeleton / f"{kind}.head").read_bytes(), places, facts, weights)
        for graph in skeleton.glob("*.onnx"):
            (folder / graph.name).write_bytes(graph.read_bytes())
        for file in facts["tables"]:
            os.link(out / file, folder / file)
        (folder / "golden.npz").write_bytes(b"none")
        manifest = facts["manifest"] | {"name": f"{facts['manifest']['name']}-{kind}"}
        manifest["decoder"] = manifest["decoder"] | {"precision": kind}
        manifest["files"] = {
            path.name: {"bytes": path.stat().st_size, "sha256": "0" * 64} for path in sorted(folder.iterdir())
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        bundles.append(folder)
    return bundles


def main(arguments: Sequence[str] | None = None) -> int:
    """Write them and say where."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("skeleton", type=Path)
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    given = parser.parse_args(arguments)
    print("\n".join(map(str, assemble(given.skeleton, given.out))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
