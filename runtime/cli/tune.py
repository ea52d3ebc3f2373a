"""`dasheng-edge tune`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import BundleArgument, JsonOption, bundle_argument, print_json, print_table, say, show

if TYPE_CHECKING:
    from dasheng_edge.runtime.speed.tune import Row, TuneReport


def tune(
    bundle: BundleArgument,
    others: Annotated[
        list[Path] | None,
        bundle_argument("The same model in other precisions, to be compared with the first.", "OTHER_BUNDLE"),
    ] = None,
    *,
    allow_kv: Annotated[
        bool,
        typer.Option(
            "--allow-kv/--no-allow-kv", help="Let the type of keys and values be chosen, which changes the numbers."
        ),
    ] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Remove what is stored, and measure nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find the fastest number of threads for each part of a bundle on this CPU.

    Takes less than two minutes, after waiting up to half a minute for other programs to end. What is chosen is stored
    in your cache for this bundle and machine, unless others used the machine meanwhile, and holds wherever --threads is
    not given. It differs from the default only where that was more than 3 % slower each time. Of several bundles of one
    model it also says which is the fastest; `dasheng-edge compare` says what each loses.
    """
    folders = (bundle, *(others or ()))
    if forget:
        _forget(folders, as_json=as_json)
        return
    from dasheng_edge.runtime.speed.tune import TuneOptions
    from dasheng_edge.runtime.speed.tune import tune as run

    report = run(TuneOptions(folders, allow_kv), say)
    if as_json:
        print_json(_tune_fields(report))
    else:
        _print_tune(report)
    if any(one.file is None for one in report.tuned):
        raise typer.Exit(1)


def _tune_fields(report: TuneReport) -> dict[str, object]:
    from dasheng_edge.runtime.tuned import stored_fields

    return {
        **dataclasses.asdict(report),
        "rows": [{**dataclasses.asdict(row), "ms": row.ms} for row in report.rows],
        "tuned": [{**vars(one), "choice": stored_fields(one.choice)} for one in report.tuned],
    }


def _forget(folders: tuple[Path, ...], *, as_json: bool) -> None:
    from dasheng_edge.runtime.bundle.bundle import Bundle
    from dasheng_edge.runtime.tuned import forget_tuned

    found = {str(folder): forget_tuned(Bundle.open(folder, check_sha256=False)) for folder in folders}
    if as_json:
        print_json({"forgotten": found})
        return
    for name, removed in found.items():
        show(f"{name}: {'forgotten' if removed else 'nothing was stored'}")


def _print_tune(report: TuneReport) -> None:
    from rich.table import Table

    table = Table("bundle", "part", "setting", title="tune")
    for heading in ("time", "gain"):
        table.add_column(heading, justify="right")
    table.add_column("chosen")
    before: Row | None = None
    for row in report.rows:
        if before and (before.bundle, before.part) != (row.bundle, row.part):
            table.add_section()
        before = row
        gain = "default" if row.default else f"{row.gain:+.1%}"
        table.add_row(row.bundle, row.part, row.setting, f"{row.ms:,.2f} ms", gain, "yes" if row.chosen else "")
    print_table(table)
    for reason in report.reasons:
        show(reason)
    for one in report.tuned:
        if one.file is None:
            why = f"other programs used up to {one.others_share:.0%} of the machine meanwhile; end them, and tune again"
            show(f"{one.bundle}: NOT STORED, since {why}")
        else:
            show(f"{one.bundle}: stored in {one.file}")
    show(f"measured in {report.seconds:.0f} s")
