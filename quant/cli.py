"""`dasheng-edge quantize`, `compare` and `graphs`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from dasheng_edge.quant.decoder.types import NEED_IMATRIX, DecoderType
from dasheng_edge.quant.encoder.precisions import EncoderPrecision
from dasheng_edge.quant.static.forms import Activations, GraphForm, Method, Opset, StaticOptions
from dasheng_edge.runtime.bundle.manifest import KvType
from dasheng_edge.runtime.cli.options import (
    JsonOption,
    OverwriteOption,
    ThreadsOption,
    TokensOption,
    bundle_argument,
    load,
    name_option,
    print_json,
    say,
    show,
)
from dasheng_edge.runtime.progress import StepBars, typed_path

from .recipes import RECIPES, Recipe, RecipeName

if TYPE_CHECKING:
    from dasheng_edge.quant.compare.record import Report

    from .bundle_compare import CompareOptions
    from .bundle_graphs import GraphsOptions, GraphsReport
    from .bundle_quant import QuantizeOptions, QuantizeReport


RecipeOption = Annotated[
    RecipeName | None,
    name_option(
        get_args(RecipeName),
        "RECIPE",
        "Precision of encoder, decoder, and keys and values",
        "; ".join(f"{name} is {recipe.text}" for name, recipe in RECIPES.items()),
        flag="--recipe",
    ),
]
EncoderOption = Annotated[
    EncoderPrecision | None,
    name_option(get_args(EncoderPrecision), "PRECISION", "Precision of encoder and projector, instead of the recipe's"),
]
DecoderOption = Annotated[
    DecoderType | None,
    name_option(get_args(DecoderType), "TYPE", "llama.cpp's file type of the decoder, instead of the recipe's"),
]
KvOption = Annotated[KvType | None, name_option(get_args(KvType), "TYPE", "How the decoder stores keys and values")]
CalibrateOption = Annotated[
    Path | None,
    typer.Option(
        metavar="CLIPS",
        help="Audio like that which the model will hear: a folder, a file or a manifest (.jsonl). Measures the "
        "decoder's importance matrix on it, and what `mixed` chooses by.",
    ),
]


def quantize(
    bundle: Annotated[Path, bundle_argument("Folder made by `dasheng-edge export`, or its name.")],
    *,
    out: Annotated[Path, typer.Option(metavar="BUNDLE2", help="Folder to write.")],
    recipe: RecipeOption = None,
    encoder: EncoderOption = None,
    decoder: DecoderOption = None,
    kv: KvOption = None,
    calibrate: CalibrateOption = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Importance matrix in GGUF, measured before.")
    ] = None,
    save_imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the importance matrix here; llama-quantize reads it too.")
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN=TYPE", help="Type of decoder tensors whose names match, e.g. attn_v=Q8_0."),
    ] = None,
    min_snr: Annotated[float, typer.Option(metavar="DB", help="Signal to noise that `--encoder mixed` keeps.")] = 30.0,
    vocab: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CORPUS|N",
            help="Tokens to keep: those of a text file in UTF-8 (several: once for each), N in all, or with both the N "
            "most frequent. The others are spelled with them.",
        ),
    ] = None,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle smaller and faster, and print what each part of it loses.

    Without --recipe, parts that are not named stay as they are. The new bundle replays its golden vectors before it
    gets its name; `dasheng-edge verify` does the same elsewhere.
    """
    base = RECIPES[recipe] if recipe else Recipe(None, None, None)
    chosen = dataclasses.replace(
        base, encoder=encoder or base.encoder, decoder=decoder or base.decoder, kv_type=kv or base.kv_type,
        imatrix=base.imatrix and decoder is None,
    )  # fmt: skip
    tensor_types = tuple(tensor_type or ())
    if imatrix and chosen.decoder is None:
        raise typer.BadParameter("--imatrix goes with --decoder or --recipe")
    _check_usage(chosen, tensor_types, cuts=bool(vocab))
    if not (calibrate or imatrix):
        _check_needs(chosen, f"--decoder {decoder}" if decoder else f"--recipe {recipe}")
    module = load("dasheng_edge.quant.bundle_quant", "quantize", "quant", "cpu")
    vocabulary = load("dasheng_edge.quant.vocabulary.corpus", "quantize", "quant").parse_vocabulary(vocab or ())
    options: QuantizeOptions = dataclasses.replace(
        module.quantize_options(bundle, out, chosen, imatrix=imatrix, tensor_types=tensor_types, min_snr_db=min_snr),
        calibrate=calibrate, recipe=recipe if chosen == base else None, save_imatrix=save_imatrix, threads=threads,
        vocabulary=vocabulary, overwrite=overwrite,
    )  # fmt: skip
    with StepBars() as progress:
        report: QuantizeReport = module.quantize_bundle(options, progress)
    _print_quantized(report, options, as_json=as_json)


def _check_usage(chosen: Recipe, tensor_types: tuple[str, ...], *, cuts: bool) -> None:
    """Refuse options that say too little, or that would have no effect; `cuts`: the vocabulary is cut."""
    if chosen.encoder is None and chosen.decoder is None and chosen.kv_type is None and not cuts:
        raise typer.BadParameter("name what to quantize: --recipe, or any of --encoder, --decoder, --kv and --vocab")
    if tensor_types and chosen.decoder is None:
        raise typer.BadParameter("--tensor-type goes with --decoder or --recipe")


def _check_needs(chosen: Recipe, option: str) -> None:
    """Refuse what is not made without an importance matrix, which is named by the option that asks for it."""
    if chosen.imatrix or chosen.decoder in NEED_IMATRIX:
        file = "" if chosen.encoder == "mixed" else ", or --imatrix FILE"  # the encoder needs the clips, too
        raise typer.BadParameter(
            f"{option} needs an importance matrix; pass --calibrate CLIPS to measure one on audio{file}"
        )


def _print_quantized(report: QuantizeReport, options: QuantizeOptions, *, as_json: bool) -> None:
    for warning in report.warnings:
        say(f"warning: {warning}")
    if as_json:
        print_json({
            "bundle": str(report.bundle.folder),
            "bytes": report.bytes,
            "source_bytes": report.source_bytes,
            "seconds": report.seconds,
            "steps": [dataclasses.asdict(step) for step in report.steps],
            "warnings": report.warnings,
        })  # fmt: skip
        return
    share = 100 * report.bytes / report.source_bytes
    size = f"{report.bytes / 1e6:.1f} MB, {share:.0f} % of {options.source}"
    show(f"{options.out}: {size}, in {report.seconds:.1f} s")
    show(f"check it wherever it runs with: dasheng-edge verify {typed_path(options.out)}")


def compare(
    reference: Annotated[Path, bundle_argument("Bundle as it was exported.", "REFERENCE")],
    candidates: Annotated[
        list[str],
        typer.Argument(
            metavar="CANDIDATE",
            help=f"Bundles; or what to make of the reference: recipes ({', '.join(RECIPES)}), ENCODER/DECODER or "
            "ENCODER/DECODER/KV, with +imatrix or +imatrix=FILE behind it, such as int8/Q4_K_M+imatrix.",
        ),
    ],
    *,
    clips: Annotated[
        Path,
        typer.Option("--clips", metavar="CLIPS", help="What to compare on: a manifest (.jsonl), a folder or a file."),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder for the report and its measurements, which a second run takes up."),
    ],
    calibrate: Annotated[
        Path | None, typer.Option(metavar="CLIPS", help="Other clips, which importance matrices are measured on.")
    ] = None,
    events: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON object: event label -> regular expression for answers that name it."),
    ] = None,
    max_new_tokens: TokensOption = None,
    threads: ThreadsOption = None,
    aac_metrics: Annotated[
        bool, typer.Option("--aac-metrics", help="Add FENSE, CIDEr-D and SPIDEr-FL; needs the metrics extra and Java.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what each candidate loses against a reference, on audio, and what it costs.

    Writes report.html, report.md and report.json. Encoder and decoder are judged apart and together: embeddings,
    next-token distributions on the reference's own answers, free answers, and scores where the clips state what is
    right. A run that was stopped goes on where it was.
    """
    module = load("dasheng_edge.quant.bundle_compare", "compare", "quant", "cpu")
    options: CompareOptions = module.CompareOptions(
        reference, tuple(candidates), clips, out, calibrate, events, max_new_tokens, threads, aac_metrics
    )
    with StepBars() as progress:
        report: Report = module.compare(options, progress)
    if as_json:
        print_json(report)
        return
    for candidate in report.candidates:
        if candidate.both is not None:
            kl, same = candidate.both.kl_mean, candidate.both.same_top1
            show(
                f"{candidate.name:32} {candidate.cost.total_bytes / 1e6:10.1f} MB   KL {kl.value:.4f} "
                f"[{kl.low:.4f}, {kl.high:.4f}]   same top-1 {100 * same.value:.1f} %"
            )
    if beside_others := load("dasheng_edge.quant.report.wording", "compare", "quant").beside_others(report):
        show(beside_others)
    choice, reason = report.recommendation.choice, report.recommendation.reason
    show(f"{choice}: {reason}" if choice else reason)
    show(f"read {typed_path(out / 'report.html')}")


FormOption = Annotated[
    GraphForm,
    name_option(
        get_args(GraphForm),
        "NAME",
        "What is made of each graph",
        "static has one shape and older operators; qdq is static int8 besides, made with Hugging Face optimum; ort is "
        "ONNX Runtime's own format, with the list of operators for a build that has no others",
    ),
]
OpsetOption = Annotated[int | None, typer.Option(metavar="N", help="Of the operators: 17, 19 or 23; default: 17.")]
FramesOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Frames of a run, 10 ms each; default: a chunk of the bundle.")
]
FullOption = Annotated[
    bool,
    typer.Option(
        "--full-chunks", help="An encoder for full chunks alone: it takes no valid_patches, and computes no mask."
    ),
]
MethodOption = Annotated[Method | None, name_option(get_args(Method), "NAME", "How qdq chooses ranges; default minmax")]
ActivationsOption = Annotated[
    Activations | None,
    name_option(
        get_args(Activations),
        "TYPE",
        "How qdq stores activations",
        "uint8, the default, has a zero point, as QNN takes it; int8 is symmetric, as TensorRT and RKNN ask for it",
    ),
]
_OPTIONS_OF_FORMS = {
    "static": ("--opset", "--frames", "--full-chunks"),
    "qdq": ("--opset", "--frames", "--full-chunks", "--calibrate", "--method", "--activations"),
    "ort": (),
}


def graphs(
    bundle: Annotated[Path, bundle_argument("Folder made by `dasheng-edge export`, or its name.")],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")],
    form: FormOption = "static",
    opset: OpsetOption = None,
    frames: FramesOption = None,
    full_chunks: FullOption = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="CLIPS", help="Audio on which qdq measures ranges: a folder, a file or a manifest."),
    ] = None,
    method: MethodOption = None,
    activations: ActivationsOption = None,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a bundle's graphs for other tool chains: QNN, TensorRT, RKNN, Core ML, a small ONNX Runtime.

    Each graph is held against the bundle's own, and its error is printed. graphs.json in the folder says what the
    graphs take and give.
    """
    values = (opset, frames, full_chunks or None, calibrate, method, activations)
    for word, value in zip(_OPTIONS_OF_FORMS["qdq"], values, strict=True):
        if value is not None and word not in _OPTIONS_OF_FORMS[form]:
            raise typer.BadParameter(f"{word} has no effect on --form {form}; leave it out")
    if opset not in (None, *get_args(Opset)):
        raise typer.BadParameter(f"--opset is {opset}, expected {', '.join(map(str, get_args(Opset)))}")
    module = load("dasheng_edge.quant.bundle_graphs", "graphs", "quant", "cpu")
    chosen = StaticOptions(method or "minmax", activations or "uint8")
    options: GraphsOptions = module.GraphsOptions(
        bundle, out, form, opset or 17, frames, full_chunks, calibrate, chosen, threads, overwrite
    )
    with StepBars() as progress:
        report: GraphsReport = module.write_graphs(options, progress)
    for warning in report.warnings:
        say(f"warning: {warning}")
    if as_json:
        print_json(dict(report.facts) | {"folder": str(out), "bytes": report.bytes, "seconds": report.seconds})
        return
    show(f"{out}: {report.bytes / 1e6:.1f} MB in {report.seconds:.1f} s, every graph within its tolerance")
    show(f"what the graphs take and give is in {typed_path(out / 'graphs.json')}")


COMMANDS = (quantize, compare, graphs)
