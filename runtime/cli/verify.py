"""`dasheng-edge verify`."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Annotated

import typer

from dasheng_edge.runtime.errors import BundleFileError, BundleVerifyError
from dasheng_edge.runtime.machine.devices import ON_CPU

from .options import (
    BundleArgument,
    DeviceOption,
    JsonOption,
    Tf32Option,
    ThreadsOption,
    engine_options,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from dasheng_edge.runtime.verdict.judge import Verdict, Word
    from dasheng_edge.runtime.verify import Seam, VerifyReport


def verify(
    bundle: BundleArgument,
    as_json: JsonOption = False,
    device: DeviceOption = ON_CPU,
    allow_tf32: Tf32Option = False,
    threads: ThreadsOption = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Judge the decoder with keys and values in F32 and no flash attention: one in F32 must keep 1e-5.",
        ),
    ] = False,
) -> None:
    """Check that a bundle is still the same model on this machine.

    Replays the bundle's golden vectors, which the PyTorch reference made, and prints the error after each stage.

    Where one is larger than the bundle allows, it says why: the files were altered, or the bundle is bad in itself
    (exit code 1), this machine computes otherwise (3), or the tolerances are those of another device (4). With --json,
    verdict is good, altered, bundle, machine, tolerance or unknown.
    """
    from dasheng_edge.runtime.bundle.bundle import Bundle
    from dasheng_edge.runtime.verdict.judge import Verdict, judge
    from dasheng_edge.runtime.verify import VerifyReport, verify_bundle

    report = VerifyReport(str(bundle), ())
    word: Word = "altered"
    try:
        opened, options = Bundle.open(bundle), engine_options(bundle, device, threads, allow_tf32)
        word = "bundle"  # whatever a file holds from now on, it held when the bundle was written
        report = verify_bundle(opened, options, exact=exact)
        verdict = judge(opened, options, report, exact=exact)
    except BundleFileError as error:
        if as_json:
            print_json(_verify_fields(report, Verdict(word, str(error))))
        raise
    if as_json:
        print_json(_verify_fields(report, verdict))
    else:
        _print_verify(report)
    if failed := [seam for seam in report.seams if not seam.ok]:
        worst = failed[0]
        raise BundleVerifyError(
            f"{len(failed)} of {len(report.seams)} comparisons of {bundle} are outside the tolerance, first "
            f"{worst.name} of {worst.clip}: {_number(worst)}, expected at most {worst.tolerance:g} {worst.unit}"
            f"{worst.note and f' ({worst.note})'}; {verdict.advice}",
            verdict.exit_code,
        )


def _verify_fields(report: VerifyReport, verdict: Verdict) -> dict[str, object]:
    seams = [
        {
            **dataclasses.asdict(seam),
            "ok": seam.ok,
            "error": _finite(seam.error),
        }
        for seam in report.seams
    ]
    attention = {key: _finite(error) for key, error in vars(report.attention).items()} if report.attention else None
    return {
        "bundle": report.bundle,
        "ok": report.ok,
        "verdict": verdict.word,
        "advice": verdict.advice,
        "seams": seams,
        "attention": attention,
    }


def _finite(error: float) -> float | None:
    """A number that JSON has, else null."""
    return error if math.isfinite(error) else None


def _number(seam: Seam) -> str:
    return f"{seam.error:.3g} {seam.unit}" if math.isfinite(seam.error) else str(seam.error)


def _print_verify(report: VerifyReport) -> None:
    from rich.table import Table

    columns = ("seam", "clips", "largest error", "on clip", "tolerance", "ok")
    table = Table(*columns, title=f"verify {report.bundle}")
    for name in dict.fromkeys(seam.name for seam in report.seams):
        seams = [seam for seam in report.seams if seam.name == name]
        # NaN compares with nothing, so it is put first by hand.
        worst = max(seams, key=lambda seam: math.inf if math.isnan(seam.error) else seam.error)
        ok = "yes" if all(seam.ok for seam in seams) else "NO"
        tolerance = f"{worst.tolerance:g} {worst.unit}"
        table.add_row(name, str(len(seams)), _number(worst), worst.clip, tolerance, ok)
    print_table(table)
    if report.attention:
        typer.echo(
            f"the decoder alone, first logits: error {report.attention.exact:.2g} with keys and values in F32 and no "
            f"flash attention, {report.attention.default:.2g} as llama.cpp attends by default"
        )
