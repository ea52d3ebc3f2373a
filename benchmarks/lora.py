"""Our merge of LoRA and DoRA adapters against peft's own, for random configurations.

    python -m benchmarks.lora -n 1000

Each case is a small model with the published names, one to three adapters written by peft, and what they come to:
ours block by block from the files, peft's by loading and merge_and_unload, one adapter after another. The last line
is JSON: how many configurations and the worst difference, |ours - peft's| relative to the largest value of a tensor.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.lora_cases import (
    BLOCKS,
    DIM,
    HIDDEN,
    KV,
    LAYERS,
    RENAMES,
    VOCABULARY,
    WIDE,
    Case,
    Layout,
    RandomAdapter,
    SmallModel,
    random_case,
    small_shapes,
    stored_name,
)
from dasheng_edge.export.adapter.merge import MergedTensors, open_adapters
from dasheng_edge.export.checkpoint.checkpoint import Checkpoint
from dasheng_edge.export.checkpoint.sizes import EMBEDDING, HEAD, DecoderSpec
from dasheng_edge.export.checkpoint.tensor_files import row_blocks, tensors_in
from dasheng_edge.export.reference.dasheng import EncoderSpec
from dasheng_edge.runtime.bundle.front_end_spec import FrontEndSpec

TOLERANCE = 1e-6
BLOCK_BYTES = 500  # so that every tensor is merged in several blocks


def write_checkpoint(folder: Path, layout: Layout, *, tied: bool) -> Checkpoint:
    """Random weights of a small model, and the opened checkpoint."""
    generator = torch.Generator().manual_seed(1)
    shapes = small_shapes(layout, tied=tied)
    tensors = {
        stored_name(name, layout): torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        for name, shape in shapes.items()
    }
    folder.mkdir()
    file = folder / "model.safetensors"
    save_file(tensors, file)
    decoder = DecoderSpec("qwen3", HIDDEN, WIDE, LAYERS, 2, 1, KV, VOCABULARY, 1024, 1e-6, 1e6, tied)
    stored = tensors_in(file)
    sources = {name: stored[stored_name(name, layout)] for name in shapes}
    encoder = EncoderSpec(DIM, BLOCKS, 2, WIDE / DIM)
    return Checkpoint(folder, {}, encoder, FrontEndSpec(), decoder, sources, (file,), renames=RENAMES[layout])


def write_adapter(folder: Path, adapter: RandomAdapter, base: SmallModel) -> Path:
    """Let peft write an adapter with random weights around a model, which it uses up."""
    generator = torch.Generator().manual_seed(adapter.seed)
    model = PeftModel(base, LoraConfig(**copy.deepcopy(adapter.arguments)))  # which peft changes
    with torch.no_grad():
        for name, value in model.named_parameters():
            if not value.requires_grad:
                continue
            noise = torch.randn(value.shape, generator=generator)
            if "lora_" in name and "magnitude" not in name:
                value.copy_(noise / math.sqrt(3 * value.shape[-1]))  # changes a weight by a third of its size or so
            else:
                value.add_(0.2 * noise)
    model.save_pretrained(str(folder), save_embedding_layers=adapter.save_embedding_layers)
    weights = folder / "adapter_model.safetensors"
    save_file({name: tensor.to(adapter.dtype) for name, tensor in load_file(weights).items()}, weights)
    return folder


@dataclass
class Bench:
    """Checkpoints of the kinds that cases need, and a folder for adapters."""

    folder: Path
    checkpoints: dict[tuple[Layout, bool], Checkpoint] = field(default_factory=dict)

    def checkpoint(self, case: Case) -> Checkpoint:
        """The checkpoint of a case, written once."""
        key = case.layout, case.tied
        if key not in self.checkpoints:
            folder = self.folder / f"{case.layout}, tied {case.tied}"
            self.checkpoints[key] = write_checkpoint(folder, case.layout, tied=case.tied)
        return self.checkpoints[key]

    def model(self, case: Case) -> SmallModel:
        """The checkpoint as a model."""
        return SmallModel(load_file(self.checkpoint(case).files[0]), tied=case.tied)

    def worst_difference(self, case: Case) -> float:
        """Largest difference of our merge to peft's; infinite where peft has other tensors, or one holds NaN."""
        root = Path(tempfile.mkdtemp(dir=self.folder))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of peft: what a configuration asks for in vain
            folders = [
                write_adapter(root / str(i), adapter, self.model(case)) for i, adapter in enumerate(case.adapters)
            ]
            model: Any = self.model(case)
            for folder in folders:
                model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
        worst = difference(open_adapters(folders, self.checkpoint(case)), model, case.layout)
        shutil.rmtree(root)
        return worst


def difference(merged: MergedTensors, model: nn.Module, layout: Layout) -> float:
    """Largest |ours - peft's| relative to the largest value of a tensor, over all tensors."""
    theirs = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    tied = model.get_parameter(EMBEDDING) is model.get_parameter(HEAD)
    if tied:
        del theirs[HEAD]
    names = merged.names("")
    if tied != merged.tied or {stored_name(name, layout) for name in names} != theirs.keys():
        return math.inf
    return max(_relative(_by_blocks(merged, name), theirs[stored_name(name, layout)]) for name in names)


def _by_blocks(merged: MergedTensors, name: str) -> Tensor:
    return torch.cat([merged.rows(name, *block) for block in row_blocks(merged.shape(name), BLOCK_BYTES)])


def _relative(got: Tensor, want: Tensor) -> float:
    """Never NaN, which max() may pass over; of a tensor of zeros the difference itself."""
    error = float((got.double() - want.double()).abs().max() / (want.double().abs().max() or 1))
    return error if math.isfinite(error) else math.inf


@dataclass
class Tally:
    """How many cases had a feature, and how far off the worst of them was."""

    cases: int = 0
    worst: float = 0.0

    def add(self, difference: float) -> None:
        """Count one case."""
        self.cases += 1
        self.worst = max(self.worst, math.inf if math.isnan(difference) else difference)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if a case is off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-n", "--number", type=int, default=1000, help="configurations (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the configurations (default: 0)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the matrices are small
    random, console, start = Random(options.seed), Console(stderr=True), time.perf_counter()
    everything, by_feature = Tally(), dict[str, Tally]()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for _ in track(range(options.number), "merging", console=console, transient=True):
            case = random_case(random)
            worst = bench.worst_difference(case)
            everything.add(worst)
            for feature in case.features():
                by_feature.setdefault(feature, Tally()).add(worst)
    table = Table("feature", "configurations", "worst difference")
    for name, tally in (*sorted(by_feature.items()), ("all", everything)):
        table.add_row(name, str(tally.cases), f"{tally.worst:.1e}")
    Console().print(table)
    record = {
        "configurations": everything.cases,
        "worst_difference": everything.worst,
        "tolerance": TOLERANCE,
        "seed": options.seed,
        "peft": peft.__version__,
        "seconds": round(time.perf_counter() - start, 1),
    }
    sys.stdout.write(json.dumps(record) + "\n")
    return 0 if everything.worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
