"""What fewer tokens bring and cost: bytes, memory and speed of a large vocabulary, and answers of micro that change.

    python -m benchmarks.quantization.vocabulary BUNDLE [--tokens 32768] [--out FILE.json]

BUNDLE is of true shape, as `make bench` quantizes (build/bench/small/0.6b); it is cut in a process of its own. The
whole decoder and the cut one take turns, as in benchmarks.speed.decoder: half of them with the other one opened
first, which has the better pages. Micro is cut by captions of other scenes than those of the clips that it is then
asked about, and than those that it was trained on (espeak-ng is needed).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.micro.scenes.synthesise import plan_scene
from benchmarks.places import REPOSITORY
from benchmarks.quantization.micro import BUNDLE, TEXTS, WORK, make_clips
from benchmarks.records import machine
from benchmarks.records.measured_run import run_measured
from benchmarks.records.turns import take_turns
from benchmarks.speed.decoder import GENERATED, PROMPT, Variants
from dasheng_edge.quant.bundle_quant import QuantizeOptions, quantize_bundle
from dasheng_edge.quant.vocabulary.corpus import VocabularyOptions
from dasheng_edge.runtime.bundle.bundle import DECODER, Bundle
from dasheng_edge.runtime.captioner import Captioner
from dasheng_edge.runtime.clips.clips import find_clips
from dasheng_edge.runtime.engine_options import EngineOptions
from dasheng_edge.runtime.machine.devices import usable_cores
from dasheng_edge.runtime.parts import TextParts

TOKENS, ROUNDS, SCENES = 32_768, 10, 600
WHOLE, CUT = "whole", "cut"


def cut(bundle: Path, out: Path, tokens: int) -> dict[str, Any]:
    """Cut a bundle in a process of its own, with that one's time and memory."""
    command = [sys.executable, "-m", "dasheng_edge", "quantize", str(bundle), "--vocab", str(tokens), "--out", str(out)]
    done = run_measured([*command, "--json"], REPOSITORY)
    if done.returncode:
        raise SystemExit(done.stderr)
    steps = {step["name"]: step["seconds"] for step in json.loads(done.stdout)["steps"]}
    return {
        "seconds": done.seconds, "step_s": steps["vocabulary"], "peak_rss_bytes": done.peak_rss_bytes,
        "peak_anonymous_bytes": done.peak_anonymous_bytes,
    }  # fmt: skip


def caption_memory(bundle: Path) -> int:
    """Peak bytes of a process that captions one clip, with the weights in the pages of their file."""
    clip = next((REPOSITORY / "benchmarks" / "micro" / "clips").glob("scene*.flac"))
    command = [sys.executable, "-m", "dasheng_edge", "caption", str(bundle), str(clip), "--max-new-tokens", "8"]
    done = run_measured(command, REPOSITORY)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.peak_rss_bytes


def speeds(folders: dict[str, Path], threads: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Bytes of each, and tokens per second in so many turns, half of them with the other decoder opened first."""
    options = EngineOptions().changed(threads=threads)
    rows: dict[str, dict[str, Any]] = {}
    for name, folder in folders.items():
        bundle = Bundle.open(folder, check_sha256=False)
        rows[name] = {
            "tokens": bundle.decoder_facts.vocab_size, "decoder_bytes": bundle.path(DECODER).stat().st_size,
            "bundle_bytes": bundle.manifest.total_bytes, "caption_bytes": caption_memory(folder),
            "prefill": [], "decode": [],
        }  # fmt: skip
    for order in ([*folders], [*reversed(folders)]):
        opened = {name: Bundle.open(folders[name], check_sha256=False) for name in order}
        decoders = {name: TextParts.open(bundle, options).decoder for name, bundle in opened.items()}
        turns = {name: partial(_turn, Variants(decoder, PROMPT, GENERATED)) for name, decoder in decoders.items()}
        for name, taken in take_turns(turns, -(-rounds // 2)).items():
            for key in ("prefill", "decode"):
                rows[name][key] += [row[key] for row in taken]
        for decoder in decoders.values():
            decoder.close()
    return rows


def _turn(ours: Variants) -> dict[str, float]:
    return {"prefill": ours.prefill(), "decode": ours.generate()}


def answers(work: Path) -> dict[str, Any]:
    """How many answers of micro to held-out clips are the same with the tokens of other captions."""
    corpus, out = work / "captions.txt", work / "micro"
    corpus.write_text("".join(f"{plan_scene(seed).captions[0]}\n" for seed in range(TEXTS, TEXTS + SCENES)), "utf-8")
    report = quantize_bundle(QuantizeOptions(BUNDLE, out, vocabulary=VocabularyOptions((corpus,))))
    clips = find_clips(make_clips(WORK)[0]).clips
    texts = []
    for folder in (BUNDLE, out):
        with Captioner.open(folder) as captioner:
            texts.append([captioner.caption(clip.path, prompt=clip.prompt).text for clip in clips])
    facts = report.bundle.manifest.quantization
    return {
        "tokens": report.bundle.decoder_facts.vocab_size, "of": Bundle.open(BUNDLE).decoder_facts.vocab_size,
        "held_out_share": facts and facts.vocabulary and facts.vocabulary.held_out_share,
        "clips": len(clips), "same": sum(map(str.__eq__, *texts)),
    }  # fmt: skip


def table(record: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    lines = [
        "| | tokens | decoder, MB | bundle, MB | memory of a caption, MB | prefill, tok/s | decode, tok/s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in record["speeds"].items():
        rates = " | ".join(f"{statistics.median(row[key]):.1f}" for key in ("prefill", "decode"))
        sizes = " | ".join(f"{row[f'{key}_bytes'] / 1e6:.1f}" for key in ("decoder", "bundle", "caption"))
        lines.append(f"| {name} | {row['tokens']:,} | {sizes} | {rates} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description="Measure a cut vocabulary.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--without-answers", action="store_true", help="leave micro's clips out")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        made = cut(given.bundle, Path(folder) / CUT, given.tokens)
        record: dict[str, Any] = {
            "machine": machine.card(), "threads": given.threads, CUT: made,
            "speeds": speeds({WHOLE: given.bundle, CUT: Path(folder) / CUT}, given.threads, given.rounds),
            "answers": None if given.without_answers else answers(Path(folder)),
        }  # fmt: skip
    print(table(record))
    if given.out:
        given.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
