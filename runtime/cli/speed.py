"""`dasheng-edge bench` and `tune`: parse, run, print what was measured and what was chosen."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import BundleArgument, DeviceOption, ThreadsOption, print_json, print_table

if TYPE_CHECKING:
    from dasheng_edge.runtime.speed.bench import BenchReport, Spread
    from dasheng_edge.runtime.speed.tune import Row, TuneReport

_ROUNDS = 5


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("bench")(bench)
    app.command("tune")(tune)


def bench(
    bundle: BundleArgument,
    audio: Annotated[
        list[str] | None,
        typer.Argument(metavar="AUDIO", help="Audio files; - is stdin. Default: 10 s of noise with a tone."),
    ] = None,
    *,
    against: Annotated[
        Literal["transformers"] | None,
        typer.Option(help="Run the checkpoint in PyTorch and transformers, too, in a process of its own."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What the bundle was exported from, for --against.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each clip is captioned.")] = _ROUNDS,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer; default: the bundle's.")] = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON line only.")] = False,
) -> None:
    """Measure how fast a bundle captions on this machine, stage by stage.

    Each clip is captioned once before anything is counted. After the table comes one line of JSON with all values.
    """
    if (against is None) != (checkpoint is None):
        raise typer.BadParameter(
            "--against transformers and --checkpoint DIR, the folder that the bundle was exported from, go together"
        )
    names = audio or []
    if names.count("-") > 1:
        raise typer.BadParameter("stdin (-) can be read only once")
    from dasheng_edge.runtime.speed.bench import BenchOptions
    from dasheng_edge.runtime.speed.bench import bench as run

    clips = tuple(sys.stdin.buffer.read() if name == "-" else name for name in names)
    options = BenchOptions(str(bundle), clips, rounds, max_new_tokens, device, checkpoint, threads)
    report = run(options, _say)
    if not as_json:
        _print_bench(report)
    print_json(dataclasses.asdict(report))


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _print_bench(report: BenchReport) -> None:
    from rich.table import Table
    from rich.text import Text

    other = report.against
    table = Table("stage", title=Text(f"bench {report.bundle}"))
    for heading in ("p50", "p90", *([f"transformers, {other.dtype}"] if other else [])):
        table.add_column(heading, justify="right")

    def add(name: str, spread: Spread, unit: str, theirs: Spread | None) -> None:
        cells = [f"{spread.p50:,.1f} {unit}", f"{spread.p90:,.1f} {unit}"]
        table.add_row(name, *cells, *([f"{theirs.p50:,.1f} {unit}" if theirs else ""] if other else []))

    for stage, spread in report.stages_ms.items():
        add(stage.replace("_", " "), spread, "ms", other.stages_ms.get(stage) if other else None)
    table.add_section()
    add("prefill", report.prefill_tokens_per_s, "tok/s", None)
    if report.decode_tokens_per_s:
        add("decode", report.decode_tokens_per_s, "tok/s", other.decode_tokens_per_s if other else None)
    print_table(table)
    for line in _bench_lines(report):
        typer.echo(line)


def _bench_lines(report: BenchReport) -> list[str]:
    """What is one number."""
    if report.energy_j is None:
        energy = f"energy: unknown, {report.energy_problem}"
    else:
        energy = f"energy: {report.energy_j:.2f} J per clip, of the processor"
    threads = f"{report.prefill_threads} to prefill, {report.decode_threads} to decode"
    work = f"clips: {report.clips}, audio: {report.audio_s:,.1f} s, new tokens: {sum(report.new_tokens)}"
    lines = [
        f"{work}, rounds: {report.rounds}",
        f"real-time factor: {report.real_time_factor:.4f} (seconds of work per second of audio)",
        f"load: {report.load_ms:,.0f} ms, peak memory: {_megabytes(report.peak_rss_bytes)}",
        energy,
        f"{report.device}, threads: {threads}{' (as tuned)' if report.tuned else ''}, {report.precision}",
        report.machine,
    ]
    if other := report.against:
        costs = f"load {other.load_ms:,.0f} ms, peak memory {_megabytes(other.peak_rss_bytes)}"
        lines.append(f"transformers, {other.dtype}: real-time factor {other.real_time_factor:.4f}, {costs}")
    return lines


def _megabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:,.0f} MB"


def tune(
    bundle: BundleArgument,
    others: Annotated[
        list[Path] | None,
        typer.Argument(metavar="OTHER", help="The same model in other precisions, to be compared with the first."),
    ] = None,
    *,
    allow_kv: Annotated[
        bool,
        typer.Option(
            "--allow-kv/--no-allow-kv", help="Let the type of keys and values be chosen, which changes the numbers."
        ),
    ] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Remove what is stored, and measure nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Find the fastest number of threads for each part of a bundle on this CPU, in less than two minutes, and keep it.

    What is chosen is stored in your cache for this bundle and machine, and holds wherever no --threads are given. It
    differs from the default only where that was more than 3 % faster each time. Of several bundles of one model it
    also says which is the fastest; `dasheng-edge compare` says what each loses.
    """
    folders = (bundle, *(others or ()))
    if forget:
        _forget(folders, as_json=as_json)
        return
    from dasheng_edge.runtime.speed.tune import TuneOptions
    from dasheng_edge.runtime.speed.tune import tune as run

    report = run(TuneOptions(folders, allow_kv), _say)
    if as_json:
        print_json(_tune_fields(report))
    else:
        _print_tune(report)


def _tune_fields(report: TuneReport) -> dict[str, object]:
    return {
        **dataclasses.asdict(report),
        "rows": [{**dataclasses.asdict(row), "ms": row.ms} for row in report.rows],
        "tuned": [{**vars(one), "choice": one.choice.model_dump()} for one in report.tuned],
    }


def _forget(folders: tuple[Path, ...], *, as_json: bool) -> None:
    from dasheng_edge.runtime.bundle.bundle import Bundle
    from dasheng_edge.runtime.tuned import forget_tuned

    found = {str(folder): forget_tuned(Bundle.open(folder, check_sha256=False)) for folder in folders}
    if as_json:
        print_json({"forgotten": found})
        return
    for name, removed in found.items():
        typer.echo(f"{name}: {'forgotten' if removed else 'nothing was stored'}")


def _print_tune(report: TuneReport) -> None:
    from rich.table import Table
    from rich.text import Text

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
        table.add_row(
            Text(row.bundle), row.part, Text(row.setting), f"{row.ms:,.2f} ms", gain, "yes" if row.chosen else ""
        )
    print_table(table)
    for reason in report.reasons:
        typer.echo(reason)
    for one in report.tuned:
        typer.echo(f"{one.bundle}: stored in {one.file}")
    typer.echo(f"measured in {report.seconds:.0f} s")
