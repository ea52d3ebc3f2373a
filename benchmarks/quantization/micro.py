"""Compares quantizations of MiDashengLM-micro on held-out scenes and spoken digits, and keeps the report.

    python -m benchmarks.quantization.micro              # to build/quantization
    python -m benchmarks.quantization.micro --save       # and the report to benchmarks/results/quantization

Scenes are made by seed (espeak-ng is needed): those that importance matrices are measured on, those that are compared
on and those that the model was trained on are different ones. The importance matrix on text is measured on captions
of further scenes: the best case for text, since the model writes such captions. A stopped run can be resumed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.micro.scenes import captions
from benchmarks.micro.scenes.clip_files import REFERENCES, write_clips
from benchmarks.micro.scenes.synthesise import digit_clips, plan_scene, scene_clips
from benchmarks.places import REPOSITORY, RESULTS
from dasheng_edge.quant.bundle_compare import CompareOptions, compare
from dasheng_edge.quant.compare.record import Report
from dasheng_edge.quant.decoder.imatrix_file import write_imatrix
from dasheng_edge.quant.decoder.importance import text_importance
from dasheng_edge.quant.report.report import write_report
from dasheng_edge.runtime.bundle.bundle import DECODER
from dasheng_edge.runtime.engine_options import EngineOptions, resolve_here
from dasheng_edge.runtime.progress import StepBars
from dasheng_edge.runtime.text.decoder import Decoder

BUNDLE, WORK = REPOSITORY / "build" / "micro", REPOSITORY / "build" / "quantization"
REPORT = RESULTS / "quantization"
DESCRIBE, TRANSCRIBE = "Write an audio caption describing the sound", "Transcribe the speech into text <|en|>"
SCENES, DIGITS, CALIBRATION, TEXTS = 3_500_000, 3_500_000, 4_500_000, 5_500_000  # first seeds; training has others
SCENE_COUNT, DIGIT_COUNT, CALIBRATION_COUNT, TEXT_COUNT = 200, 40, 96, 600
MAX_NEW_TOKENS = 48
TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
CANDIDATES = (
    *(f"fp32/{kind}" for kind in TYPES),
    *(f"fp32/{kind}+imatrix" for kind in ("Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS", "IQ3_XXS", "IQ2_XXS")),
    *(f"fp32/{kind}+imatrix=text.gguf" for kind in ("Q3_K_M", "Q2_K")),
    *(f"{encoder}/F16" for encoder in ("int8", "int8-block", "int4-block", "mixed")),
    "fp32/F16/q8_0", "fp32/F16/q4_0",
    "int8/Q6_K", "int8/Q4_K_M+imatrix", "int8/Q2_K+imatrix", "int4-block/Q4_K_M+imatrix", "mixed/IQ3_XXS/q8_0+imatrix",
)  # fmt: skip


def make_clips(folder: Path) -> tuple[Path, Path]:
    """Manifests of the clips to compare on and to calibrate on; made unless they are there."""
    compared, calibrated = folder / "clips", folder / "calibration"
    if not compared.is_dir():
        scenes = scene_clips([plan_scene(seed) for seed in range(SCENES, SCENES + SCENE_COUNT)])
        digits = digit_clips(range(DIGITS, DIGITS + DIGIT_COUNT))
        write_clips(compared, (clip for group in (scenes, digits) for clip in group))
    if not calibrated.is_dir():
        write_clips(
            calibrated, scene_clips([plan_scene(seed) for seed in range(CALIBRATION, CALIBRATION + CALIBRATION_COUNT)])
        )
    return write_manifest(compared), write_manifest(calibrated)


def write_manifest(folder: Path) -> Path:
    """The references of a folder of clips as a manifest for `dasheng-edge compare`."""
    rows = []
    for line in (folder / REFERENCES).read_text("utf-8").splitlines():
        known = json.loads(line)
        row: dict[str, object] = {"audio": known["file"]}
        if digits := known.get("digits"):
            row |= {"prompt": TRANSCRIBE, "transcript": digits}
        else:
            row |= {"prompt": DESCRIBE, "references": known["captions"], "events": known["kinds"]}
        rows.append(json.dumps(row) + "\n")
    path = folder / "clips.jsonl"
    path.write_text("".join(rows), "utf-8")
    return path


def make_text_imatrix(folder: Path) -> Path:
    """An importance matrix measured on captions alone."""
    path = folder / "text.gguf"
    if not path.is_file():
        text = "\n".join(plan_scene(seed).captions[0] for seed in range(TEXTS, TEXTS + TEXT_COUNT))
        decoder = Decoder.open(BUNDLE / DECODER, resolve_here(EngineOptions(weights="repacked")))
        write_imatrix(path, text_importance(decoder, BUNDLE / DECODER, text, "text"))
        decoder.close()
    return path


def run(folder: Path, names: Sequence[str] = CANDIDATES) -> Report:
    """Make what is needed and compare."""
    folder.mkdir(parents=True, exist_ok=True)
    clips, calibration = make_clips(folder)
    text = make_text_imatrix(folder)
    events = folder / "events.json"
    events.write_text(json.dumps(captions.STEMS), "utf-8")
    candidates = tuple(name.replace("text.gguf", str(text)) for name in names)
    options = CompareOptions(
        BUNDLE, candidates, clips, folder / "report", calibrate=calibration, events=events,
        max_new_tokens=MAX_NEW_TOKENS,
    )  # fmt: skip
    with StepBars() as progress:
        return compare(options, progress)


def summary(report: Report) -> dict[str, object]:
    """The comparison in one line."""
    return {
        "recommended": report.recommendation.choice,
        "kl_mean": {one.name: round(one.both.kl_mean.value, 6) for one in report.candidates if one.both},
        "event_f1": {one.name: round(one.task["event_f1"].value.value, 4) for one in report.candidates},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Compare quantizations of MiDashengLM-micro.")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--save", action="store_true", help="put the report into benchmarks/results/quantization")
    given = parser.parse_args(arguments)
    report = run(given.work)
    if given.save:
        REPORT.mkdir(parents=True, exist_ok=True)
        write_report(report, REPORT)  # without the clips' audio, which would be 2 MB
    print(json.dumps(summary(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
