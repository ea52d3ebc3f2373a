"""Mutated bundles, whose manifest lists the mutated file as it is, and mutated caches of a good bundle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from dasheng_edge.runtime.bundle.bundle import DECODER, ENCODER, FRONT_END, GOLDEN, GOLDEN_FLAT, PROJECTOR, Bundle
from dasheng_edge.runtime.bundle.manifest import MANIFEST
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.program import upgrade_bundle
from dasheng_edge.runtime.verify import verify_bundle
from tests.fixtures.places import MICRO, SMALLEST_BUNDLE

from .case import Case, WrongAnswerError
from .mutate import GgufHeader, Rng, mutated, mutated_json

CLIP = ((0.1 * np.sin(np.arange(8000) / 8)).astype(np.float32), 16_000)
ONE_THREAD = EngineOptions().changed(threads=1)
OPERATORS = ("Loop", "Identity", "Expand", "Split", "Range", "Nothing", "Resize", "Shape")
PARTS = (MANIFEST, DECODER, DECODER, FRONT_END, ENCODER, PROJECTOR, GOLDEN, GOLDEN_FLAT)


def bundles(rng: Rng, folder: Path) -> Case:
    """One file of a bundle is mutated, and the bundle opened, asked about a clip and, now and then, verified."""
    source = MICRO if rng.random() < 0.2 and MICRO.is_dir() else SMALLEST_BUNDLE
    bundle = _copied(source, folder / "bundle")
    if rng.random() < 0.5:
        upgrade_bundle(bundle)  # of a bundle of today, whose manifest has `program`
    name = PARTS[int(rng.integers(len(PARTS)))]
    if not (bundle / name).is_file():  # an older bundle has no flat vectors
        name = GOLDEN
    content = (bundle / name).read_bytes()
    if name == MANIFEST:
        what, changed = "json", mutated_json(content.decode(), rng).encode("utf-8", "surrogatepass")
    elif name == DECODER and rng.random() < 0.85:
        header = GgufHeader(content)
        what = "; ".join(header.mutate(rng) for _ in range(int(rng.integers(1, 3))))
        changed = header.file()
    elif name.endswith(".onnx") and rng.random() < 0.7:
        what, changed = _mutated_graph(content, rng)
    else:
        what, changed = "bytes", mutated(content, rng, header_bytes=4096)
    _write(bundle, name, changed)
    verify = rng.random() < 0.25 or name in (GOLDEN, GOLDEN_FLAT)
    return Case(f"{source.name} {name}: {what}", partial(_caption, bundle, verify=verify))


def _copied(source: Path, bundle: Path) -> Path:
    """Of links, since nothing changes a file in place."""
    bundle.mkdir()
    for path in source.iterdir():
        link(path, bundle / path.name)
    return bundle


def link(path: Path | str, name: Path | str) -> None:
    """As `os.link`, or a copy on another file system."""
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)


def _write(bundle: Path, name: str, content: bytes) -> None:
    files = {name: content}
    if name != MANIFEST:
        manifest = json.loads((bundle / MANIFEST).read_text("utf-8"))
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        files[MANIFEST] = json.dumps(manifest).encode()
    for file, data in files.items():
        (bundle / file).unlink()
        (bundle / file).write_bytes(data)


def _mutated_graph(content: bytes, rng: Rng) -> tuple[str, bytes]:
    """A node, an initialiser, an output or the opset is changed."""
    import onnx  # heavy, and needed by these cases alone

    model = onnx.load_from_string(content)
    graph, what = model.graph, ""
    for _ in range(int(rng.integers(1, 3))):
        how = int(rng.integers(8))
        node = graph.node[int(rng.integers(len(graph.node)))]
        if how == 0:
            what = f"{node.op_type} becomes"
            node.op_type = OPERATORS[int(rng.integers(len(OPERATORS)))]
        elif how == 1 and node.attribute:
            attribute = node.attribute[int(rng.integers(len(node.attribute)))]
            what = f"{node.op_type}.{attribute.name}"
            attribute.i = int(rng.choice([-1, 0, 1, 3, 2**31, 2**62]))
            attribute.ints[:] = [int(rng.choice([-1, 0, 1, 2**40])) for _ in attribute.ints]
        elif how == 2:
            what = f"{node.op_type} removed"
            graph.node.remove(node)
        elif how == 3 and node.input:
            what = f"{node.op_type} has another input"
            node.input[int(rng.integers(len(node.input)))] = graph.node[int(rng.integers(len(graph.node)))].output[0]
        elif how == 4 and graph.initializer:
            tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
            what = f"initialiser {tensor.name}"
            tensor.dims[:] = [int(size * rng.choice([0, 1, 2, 2**40, -1])) for size in tensor.dims]
        elif how == 5 and graph.initializer:
            tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
            what = f"type of {tensor.name}"
            tensor.data_type = int(rng.integers(0, 24))
        elif how == 6:
            what = "opset"
            model.opset_import[0].version = int(rng.choice([0, 1, 7, 13, 99, 2**31]))
        else:
            what = "one more output"
            node.output.append("more")
    return what, model.SerializeToString()


def _caption(bundle: Path, *, verify: bool) -> str:
    with Captioner.open(bundle, options=ONE_THREAD) as captioner:
        text = captioner.caption(CLIP, max_new_tokens=2).text
    if verify:
        verify_bundle(Bundle.open(bundle), ONE_THREAD)
    return text


def caches(rng: Rng, folder: Path) -> Case:
    """What a captioner keeps on disk is mutated; the caption must stay what it was."""
    cache = folder / "cache"
    options = replace(ONE_THREAD, cache=cache)
    expected = _text(options)
    files = sorted(path for path in cache.rglob("*") if path.is_file())
    path = files[int(rng.integers(len(files)))]
    path.write_bytes(mutated(path.read_bytes(), rng, header_bytes=128))
    return Case(path.suffix, partial(_same_text, options, expected))


def _text(options: EngineOptions) -> str:
    with Captioner.open(SMALLEST_BUNDLE, options=options) as captioner:
        return captioner.caption(CLIP, max_new_tokens=6).text


def _same_text(options: EngineOptions, expected: str) -> None:
    if (text := _text(options)) != expected:
        raise WrongAnswerError(f"{text!r}, and {expected!r} before")
