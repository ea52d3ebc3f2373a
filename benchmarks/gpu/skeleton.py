"""The skeleton of a bundle of true shape: graphs and GGUF headers as the exporter writes them, and where weights go.

    python -m benchmarks.gpu.skeleton 7b build/gpu/7b

`assemble` fills it with random weights elsewhere in seconds: a skeleton has 14 MB, the bundles have 21 GB. It takes the
export extra, a checkpoint of zeros that take no room, and the disk that a float32 encoder needs meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx_ir as ir

from benchmarks.synthetic.checkpoint import Request, write_checkpoint
from benchmarks.synthetic.shapes import Architecture, Decoder, architecture
from dasheng_edge.export.adapter.merge import MergedTensors
from dasheng_edge.export.bundle_export import TextSide, read_text
from dasheng_edge.export.checkpoint.checkpoint import open_checkpoint
from dasheng_edge.export.gguf.decoder import ARCHITECTURES
from dasheng_edge.export.gguf.metadata import PREFIX, add_metadata, add_vocabulary
from dasheng_edge.export.graphs.encoder import export_encoder, export_projector
from dasheng_edge.export.graphs.front_end import export_front_end
from dasheng_edge.export.options import ExportOptions
from dasheng_edge.quant.decoder.llama_quantize import FILE_TYPES
from dasheng_edge.quant.encoder.graphs import convert, load_graph, matrix_nodes, save_graph, to_cuda
from dasheng_edge.runtime.bundle.bundle import CUDA_GRAPHS, ENCODER, FRONT_END, PROJECTOR, weights_file
from dasheng_edge.runtime.bundle.manifest import DecoderFacts, EncoderFacts, Manifest, Provenance, Tolerances

SHAPES = ("7b", "tiny")
TYPES = ("F16", "Q4_K_M")
FACTS = "skeleton.json"
# What the batch norm before the encoder does to decibels; so few numbers stand in the graph itself.
NORM = {"weight": 1.0, "bias": 0.0, "running_mean": -20.0, "running_var": 18.0**2}
Places = dict[str, list[Any]]  # name of a tensor -> [offset, type, shape], as it lies in its file


def shape_of(name: str) -> Architecture:
    """Sizes of the 7B; of "tiny", the same in small."""
    model = architecture("7b")
    if name != "tiny":
        return model
    assert model.decoder is not None
    small = replace(model.decoder, hidden=512, intermediate=1024, layers=2, heads=4, kv_heads=2)
    return replace(model, embed_dim=256, depth=2, heads=4, decoder=small)


def write_skeleton(name: str, out: Path) -> None:
    """Write graphs, headers and `skeleton.json`.

    Raises:
        FileExistsError: there is something at `out`.
    """
    model = shape_of(name)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=out) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zeros have no relative error
        checkpoint = Path(folder) / "checkpoint"
        write_checkpoint(Request(model, checkpoint, "bf16", hollow=True))
        merged = MergedTensors(open_checkpoint(checkpoint))
        export_front_end(out / FRONT_END, merged.checkpoint.front_end)
        tables = {}
        for graph, export in ((ENCODER, export_encoder), (PROJECTOR, export_projector)):
            export(Path(folder) / graph, merged)
            tables[weights_file(out / graph).name] = _halve(Path(folder) / graph, out)
        text = read_text(merged.checkpoint, ExportOptions(checkpoint, out))
        heads = {kind: _write_head(out / f"{kind}.head", merged, text, kind) for kind in TYPES}
        manifest = _manifest(name, merged, text)
    vocabulary = text.vocabulary
    ends = {vocabulary.eos_id, vocabulary.eot_id, vocabulary.eom_id, vocabulary.pad_id, *vocabulary.stop_ids} - {None}
    facts = {
        "shape": asdict(model), "manifest": manifest.model_dump(mode="json"), "tables": tables, "heads": heads,
        "ends": sorted(token for token in ends if token is not None),
    }  # fmt: skip
    (out / FACTS).write_text(json.dumps(facts))


def _halve(source: Path, out: Path) -> Places:
    """The graphs of `quantize --encoder fp16`, for the CPU and for CUDA, without weights; where those go."""
    model = load_graph(source)
    for name, value in model.graph.initializers.items():
        if "init_bn" in name and value.const_value is not None:
            values = np.full(value.const_value.shape.numpy(), NORM[name.rpartition(".")[2]], np.float32)
            value.const_value = ir.Tensor(values, name=name)
    convert(model, dict.fromkeys(matrix_nodes(model), "fp16"))
    written = out / source.name
    save_graph(model, written, beside=True)
    source.unlink()
    weights_file(source).unlink(missing_ok=True)
    model = load_graph(written)
    places: Places = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            places[name] = [tensor.offset, tensor.dtype.name, list(tensor.shape.numpy())]
    to_cuda(model)
    ir.save(model, out / CUDA_GRAPHS[source.name])
    weights_file(written).unlink()
    return places


def _write_head(path: Path, merged: MergedTensors, text: TextSide, kind: str) -> Places:
    """A GGUF file up to its tensors, and where those begin behind it."""
    checkpoint = merged.checkpoint
    names = gguf.get_tensor_name_map(ARCHITECTURES[checkpoint.text_decoder.arch], checkpoint.text_decoder.layers)
    writer = gguf.GGUFWriter(path, checkpoint.text_decoder.arch)
    add_metadata(writer, merged, FILE_TYPES[kind], text.facts.sampling)
    add_vocabulary(writer, text.vocabulary)
    places: Places = {}
    end = 0
    for name in merged.names(PREFIX):
        stored = names.get_name(name.removeprefix(PREFIX), try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        shape = merged.shape(name)
        type_ = tensor_type(stored, len(shape), kind, checkpoint.text_decoder.layers)
        block, block_bytes = gguf.GGML_QUANT_SIZES[type_]
        size = math.prod(shape) // block * block_bytes
        writer.add_tensor_info(stored, shape, np.dtype(np.float32), size, raw_dtype=type_)
        places[stored] = [end, type_.name, list(shape)]
        end += size + -size % 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    writer.write_padding(writer.fout[0], writer.fout[0].tell())
    writer.close()
    return places


def tensor_type(name: str, axes: int, kind: str, layers: int) -> gguf.GGMLQuantizationType:
    """What llama.cpp stores a tensor in; of Q4_K_M, some are Q6_K (`llama_tensor_get_type` in llama-quant.cpp)."""
    types = gguf.GGMLQuantizationType
    if axes == 1:
        return types.F32
    if kind == "F16":
        return types.F16
    if name == "output.weight":
        return types.Q6_K
    if "attn_v" in name or "ffn_down" in name:
        layer = int(name.split(".")[1])
        if layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2:
            return types.Q6_K
    return types.Q4_K


def _manifest(name: str, merged: MergedTensors, text: TextSide) -> Manifest:
    """The manifest of the F16 decoder, without the files; random weights keep no tolerance."""
    checkpoint, parameters = merged.checkpoint, merged.parameters
    encoder, decoder = checkpoint.encoder, checkpoint.text_decoder
    return Manifest(
        name=name, variant=checkpoint.variant.name, front_end=checkpoint.front_end,
        encoder=EncoderFacts(
            embed_dim=encoder.embed_dim, depth=encoder.depth, num_heads=encoder.num_heads,
            parameters=parameters("audio_encoder."), precision="fp16",
        ),
        projector_parameters=parameters("audio_projector."),
        decoder=DecoderFacts(
            arch=decoder.arch, hidden_size=decoder.hidden_size, layers=decoder.layers, vocab_size=decoder.vocab_size,
            context_length=decoder.context_length, parameters=parameters(PREFIX), precision="F16",
        ),
        prompt=text.facts,
        tolerances=Tolerances(
            log_mel_db=1, patches_relative=1, embeddings_relative=1, logits_relative=1, token_margin=1
        ),
        provenance=Provenance(tool="benchmarks.gpu", checkpoint="random weights", checkpoint_sha256="0" * 64),
        files={},
    )  # fmt: skip


def decoder_of(facts: Mapping[str, Any]) -> Decoder:
    """Sizes of the decoder, from `skeleton.json`."""
    return Decoder(**facts["shape"]["decoder"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if there is something at OUT."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    given = parser.parse_args(arguments)
    try:
        write_skeleton(given.shape, given.out)
    except FileExistsError as error:
        print(f"skeleton: {error}", file=sys.stderr)
        return 1
    except BaseException:
        shutil.rmtree(given.out, ignore_errors=True)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
