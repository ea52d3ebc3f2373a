"""`dasheng-edge export` and `pull`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from dasheng_edge.quant.decoder.types import PlainType
from dasheng_edge.runtime.bundle.writer import BundleWriter
from dasheng_edge.runtime.cli.options import JsonOption, OverwriteOption, load, name_option, print_json, say, show
from dasheng_edge.runtime.progress import StepBars, typed_path

from .hub.progress import PullBar
from .options import EncoderPrecision, ExportOptions, PromptOverrides

if TYPE_CHECKING:
    from dasheng_edge.export.hub.pull import PullOptions, PullReport

    from .bundle_export import ExportReport


EncoderOption = Annotated[
    EncoderPrecision,
    name_option(
        get_args(EncoderPrecision),
        "PRECISION",
        "Precision of the audio encoder",
        others="others are made of the bundle: dasheng-edge quantize BUNDLE --out BUNDLE2 --encoder int8",
    ),
]

AdapterOption = Annotated[
    list[Path] | None,
    typer.Option(metavar="DIR", help="LoRA adapter (peft) to merge in; repeat for several, merged in order."),
]
PadOption = Annotated[
    bool | None,
    typer.Option(
        "--pad-last-chunk/--short-last-chunk",
        help="Whether a Dasheng encoder alone fills the last 10.08 s of a clip up with zeros, as dasheng up to 0.0.7 "
        "and the Hugging Face hub's code do; default: as the checkpoint says, else not, as dasheng 0.0.9.",
    ),
]


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="Local folder with config.json and safetensors, or Dasheng's torch file."
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="Folder to write.")],
    adapter: AdapterOption = None,
    encoder: EncoderOption = "fp32",
    decoder: Annotated[
        PlainType, name_option(get_args(PlainType), "TYPE", "llama.cpp's file type of the decoder")
    ] = "F16",
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What the bundle asks by default, instead of what its variant is asked."),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Default system text, '' for none, instead of the checkpoint's or variant's."
        ),
    ] = None,
    audio_first: Annotated[
        bool | None,
        typer.Option("--audio-first/--text-first", help="Order in the user's turn; default: the variant's."),
    ] = None,
    pad_last_chunk: PadOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export a checkpoint, with its adapters merged in, to a bundle.

    Each step prints its error against its source. If one is out of tolerance, or anything else goes wrong,
    nothing is written.
    """
    overrides = PromptOverrides(prompt, system, audio_first)
    options = ExportOptions(
        checkpoint, out, tuple(adapter or ()), encoder, decoder, overwrite, overrides, pad_last_chunk
    )
    with BundleWriter(out, overwrite=overwrite):  # refuses what cannot be written before PyTorch is loaded
        pass
    bundle_export = load("dasheng_edge.export.bundle_export", "export", "export", "cpu")
    with StepBars() as progress:
        report: ExportReport = bundle_export.export_bundle(options, progress)
    if as_json:
        print_json({
            "bundle": str(report.bundle.folder),
            "bytes": report.bytes,
            "seconds": report.seconds,
            "steps": [dataclasses.asdict(step) for step in report.steps],
            "assumptions": report.assumptions,
            "warnings": report.warnings,
        })  # fmt: skip
        return
    _print(report, out)


def _print(report: ExportReport, out: Path) -> None:
    show(f"{out}: {report.bytes / 1e6:.1f} MB in {report.seconds:.1f} s, every step within its tolerance")
    for warning in report.warnings:
        say(f"warning: {warning}")
    for assumption in report.assumptions:
        say(f"assumed: {assumption}")
    show(f"check it wherever it runs with: dasheng-edge verify {typed_path(out)}")


def pull(
    model_id: Annotated[
        str, typer.Argument(metavar="MODEL_ID", help="OWNER/NAME on the hub, or the address of its page.")
    ],
    *,
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Branch, tag or commit; default: the newest.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to make; default: NAME, in the current folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Download a checkpoint or a LoRA adapter from the Hugging Face hub, for `dasheng-edge export`.

    Only what the export reads is fetched, and all of it is checked: no code, no pickles. After an interruption the
    same command goes on where it stopped. HF_ENDPOINT names another hub, HF_TOKEN a token for private models.
    """
    load("dasheng_edge.export.hub.model_id", "pull", "pull").parse_model_id(model_id)  # the hub's library takes seconds
    module = load("dasheng_edge.export.hub.pull", "pull", "pull")
    options: PullOptions = module.PullOptions(model_id, revision, out)
    try:
        with PullBar() as progress:
            report: PullReport = module.pull(options, progress)
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM
        if note := module.left_behind(options.partial):
            say(note)
        raise
    if as_json:
        print_json(dataclasses.asdict(report) | {"folder": str(report.folder)})
        return
    there = "" if report.fetched_bytes else ", all here already"
    show(
        f"{report.folder}: {report.repo} at {report.revision}, {report.bytes / 1e6:,.1f} MB in {len(report.files)} "
        f"files{there}"
    )
    folder = typed_path(report.folder)
    checkpoint = f"CHECKPOINT --adapter {folder}" if report.adapter else folder
    show(f"export it with: dasheng-edge export {checkpoint} --out BUNDLE")


COMMANDS = (export, pull)
