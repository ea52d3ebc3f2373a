"""The small trained model on a device: `verify` of fp32, fp16 and int8, and its captions against those of the CPU.

    python -m benchmarks.gpu.correctness MICRO CLIPS WORK FINDINGS --device cuda

Each precision has processes of its own: a signal that ends one, as a kernel that is missing does, is a row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.findings import Findings, how_ended
from benchmarks.places import REPOSITORY
from benchmarks.synthetic.noise import GREEDY
from dasheng_edge.runtime import Captioner
from dasheng_edge.runtime.audio.read import AudioSource

COMMAND = (sys.executable, "-c", "from dasheng_edge.runtime.cli.app import main; main()")
ITSELF = (sys.executable, "-m", "benchmarks.gpu.correctness")
PRECISIONS = ("fp16", "int8")
LIMIT_S, TOKENS, SHOWN = 90, 40, 1500


def run(*line: str) -> dict[str, Any]:
    """What a program said: exit status, or the signal that ended it, seconds, and the end of what it wrote."""
    start = time.perf_counter()
    try:
        done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"status": None, "seconds": LIMIT_S, "stderr": "it took too long"}
    seconds = round(time.perf_counter() - start, 1)
    found = {"status": how_ended(done.returncode), "seconds": seconds, "stdout": done.stdout[-SHOWN:]}
    return found | ({"stderr": done.stderr[-SHOWN:]} if done.returncode else {})


def command(*arguments: str) -> dict[str, Any]:
    """As `run`, of `dasheng-edge`."""
    return run(*COMMAND, *arguments)


def sources(folder: Path) -> list[AudioSource]:
    """Clips of a folder; 16-bit WAV needs no decoder, which a machine without network may lack."""
    found: list[AudioSource] = []
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".wav", ".flac")):
        if path.suffix == ".flac":
            found.append(path)
            continue
        with wave.open(str(path), "rb") as file:
            values = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
            found.append((values.reshape(-1, file.getnchannels()).mean(1), file.getframerate()))
    return found


def texts(bundle: Path, clips: Sequence[AudioSource], device: Any, batch: int = 0) -> list[str]:
    """What the model says, one by one or in batches."""
    with Captioner.open(bundle, device=device, check_sha256=False) as captioner:
        if batch:
            said = captioner.caption_batch(clips, max_new_tokens=TOKENS, sampling=GREEDY, batch=batch)
        else:
            said = [captioner.caption(clip, max_new_tokens=TOKENS, sampling=GREEDY) for clip in clips]
    return [one.text for one in said]


def agreement(got: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
    """How many are equal, and the first that are not."""
    pairs = list(zip(got, wanted, strict=True))
    return {
        "equal": sum(one == other for one, other in pairs), "of": len(pairs),
        "differ": [list(pair) for pair in pairs if pair[0] != pair[1]][:3],
    }  # fmt: skip


def check(given: argparse.Namespace, findings: Findings) -> None:
    """All of it; a precision that cannot be made is left out."""
    given.work.mkdir(parents=True, exist_ok=True)
    bundles = {"fp32": given.micro} | {name: given.work / f"micro-{name}" for name in PRECISIONS}
    with ThreadPoolExecutor(len(PRECISIONS)) as pool:
        made = pool.map(
            lambda name: command("quantize", str(given.micro), "--encoder", name, "--out", str(bundles[name])),
            PRECISIONS,
        )
        for name, said in zip(PRECISIONS, made, strict=True):
            findings.note(f"quantize_{name}", {key: value for key, value in said.items() if key != "stdout"})
    there = {name: bundle for name, bundle in bundles.items() if bundle.is_dir()}
    findings.note("doctor", command("doctor", str(given.micro)))
    with ThreadPoolExecutor(len(there)) as pool:
        verified = pool.map(lambda bundle: command("verify", str(bundle), "--device", given.device), there.values())
        for name, said in zip(there, verified, strict=True):
            findings.note(f"verify_{name}", said)
    for name, bundle in there.items():
        own = given.work / f"captions-{name}.json"
        line = (str(bundle), str(given.clips), str(given.work), str(own), "--device", given.device, "--captions", name)
        said = run(*ITSELF, *line)
        figures = json.loads(own.read_text()) if own.is_file() else {}
        missing = {"error": f"{said['status']}: {said.get('stderr', '')[-SHOWN:]}"}
        for figure in (f"captions_{name}", f"batch_{name}"):
            findings.note(figure, figures.get(figure, missing))


def captions(given: argparse.Namespace, findings: Findings) -> None:
    """Those of one bundle on a device, alone and in batches, against its own on the CPU."""
    bundle, clips, name = given.micro, sources(given.clips), given.captions
    wanted = texts(bundle, clips, "cpu")
    findings.attempt(f"captions_{name}", lambda: agreement(texts(bundle, clips, given.device), wanted))
    findings.attempt(f"batch_{name}", lambda: agreement(texts(bundle, clips, given.device, 8), wanted))


def main(arguments: Sequence[str] | None = None) -> int:
    """What goes wrong with a figure stands in its place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    for name in ("micro", "clips", "work", "findings"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--captions", metavar="NAME", help="only captions of MICRO, under this name")
    given = parser.parse_args(arguments)
    (captions if given.captions else check)(given, Findings(given.findings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
