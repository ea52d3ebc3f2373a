"""Bundles of other kinds, made of the files of a whole one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from dasheng_edge.runtime.audio.front_end import AcousticSpec
from dasheng_edge.runtime.bundle.bundle import ENCODER, FRONT_END, GOLDEN, Bundle, Manifest
from dasheng_edge.runtime.bundle.writer import BundleWriter

DECODER_FIELDS = ("embeddings", "prompt", "logits", "tokens", "margins")


def write_encoder_bundle(source: Path, out: Path) -> Path:
    """An encoder only: leaves out the files, facts, tolerances and golden vectors of the decoder."""
    whole = Bundle.open(source)
    limits = whole.manifest.tolerances.model_dump(include={"log_mel_db", "patches_relative"})
    decoder = {"projector_parameters": None, "decoder": None, "prompt": None}
    manifest = _changed(whole.manifest, name="tiny-dasheng", variant="dasheng", tolerances=limits, **decoder)
    with BundleWriter(out) as writer:
        for name in (FRONT_END, ENCODER):
            shutil.copy(whole.path(name), writer.path(name))
        golden = _golden(whole)
        kept = {key: value for key, value in golden.items() if not key.startswith(DECODER_FIELDS)}
        np.savez(writer.path(GOLDEN), allow_pickle=False, **kept)
        return writer.finish(manifest).folder


def write_two_branch_bundle(source: Path, out: Path) -> Path:
    """Two spectrograms, the second of which is the first over 10, and an encoder that takes both and uses one."""
    whole = Bundle.open(source)
    front_end = whole.manifest.front_end.model_copy(update={"acoustic": AcousticSpec(n_mels=64)})
    limits = whole.manifest.tolerances.model_copy(update={"acoustic_nepers": 1e-3})
    manifest = _changed(
        whole.manifest,
        variant="midashenglm-tokenizer",
        front_end=front_end.model_dump(),
        tolerances=limits.model_dump(),
    )
    with BundleWriter(out) as writer:
        for name in whole.manifest.files:
            shutil.copy(whole.path(name), writer.path(name))
        model = onnx.load(whole.path(FRONT_END))
        model.graph.initializer.append(helper.make_tensor("tenth", TensorProto.FLOAT, [], [0.1]))
        model.graph.node.append(helper.make_node("Mul", ["log_mel", "tenth"], ["acoustic_mel"]))
        model.graph.output.append(helper.make_tensor_value_info("acoustic_mel", TensorProto.FLOAT, [1, 64, "frames"]))
        onnx.save(model, writer.path(FRONT_END))
        model = onnx.load(whole.path(ENCODER))
        acoustic = helper.make_tensor_value_info("acoustic_mel", TensorProto.FLOAT, [1, 64, "frames"])
        model.graph.input.insert(1, acoustic)
        model.graph.input.append(helper.make_tensor_value_info("kept_patches", TensorProto.INT64, [1]))
        onnx.save(model, writer.path(ENCODER))
        golden = _golden(whole)
        tenths = {f"acoustic_{k}".replace("log_", ""): v * np.float32(0.1) for k, v in golden.items() if "log_mel" in k}
        np.savez(writer.path(GOLDEN), allow_pickle=False, **golden, **tenths)
        return writer.finish(manifest).folder


def _golden(bundle: Bundle) -> dict[str, NDArray[Any]]:
    with np.load(bundle.path(GOLDEN)) as file:
        return dict(file)


def _changed(manifest: Manifest, **changes: object) -> Manifest:
    return Manifest.model_validate({**manifest.model_dump(), **changes, "files": {}})
