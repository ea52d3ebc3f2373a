"""`dasheng-edge bench`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dasheng_edge.runtime.machine.devices import ON_CPU
from dasheng_edge.runtime.names import fitted, printable

from .options import (
    BundleArgument,
    DeviceOption,
    JsonOption,
    LowMemoryOption,
    Tf32Option,
    ThreadsOption,
    TokensOption,
    check_stdin,
    engine_options,
    print_json,
    print_table,
    say,
)

if TYPE_CHECKING:
    from dasheng_edge.runtime.speed.bench import BenchReport, Spread


def bench(
    bundle: BundleArgument,
    audio: Annotated[
        list[str] | None,
        typer.Argument(metavar="AUDIO", help="Audio files; - is stdin. Default: 10 s of noise with a tone."),
    ] = None,
    *,
    against: Annotated[
        Literal["transformers"] | None,
        typer.Option(
            metavar="transformers", help="Run the checkpoint in PyTorch and transformers, too, in a process of its own."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What the bundle was exported from, for --against.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="How often each clip is captioned.")] = 5,
    max_new_tokens: TokensOption = None,
    device: DeviceOption = ON_CPU,
    allow_tf32: Tf32Option = False,
    threads: ThreadsOption = None,
    low_memory: LowMemoryOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how fast a bundle captions on this machine, stage by stage.

    Each clip is captioned once before anything is counted. --json prints more values than the table has.
    """
    if (against is None) != (checkpoint is None):
        raise typer.BadParameter(
            "--against transformers and --checkpoint DIR, the folder that the bundle was exported from, go together"
        )
    names = audio or []
    check_stdin(names)
    from dasheng_edge.runtime.speed.bench import BenchOptions
    from dasheng_edge.runtime.speed.bench import bench as run

    clips = tuple(sys.stdin.buffer.read() if name == "-" else name for name in names)
    options = BenchOptions(
        str(bundle),
        clips,
        rounds,
        max_new_tokens,
        checkpoint,
        engine_options(bundle, device, threads, allow_tf32, low_memory),
    )
    report = run(options, say)
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        _print_bench(report)


def _print_bench(report: BenchReport) -> None:
    from rich.table import Table

    other = report.against
    table = Table("stage", title=f"bench {report.bundle}")
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
        typer.echo(fitted(printable(line), sys.stdout))


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
        _others("", report.others_share),
    ]
    if other := report.against:
        costs = f"load {other.load_ms:,.0f} ms, peak memory {_megabytes(other.peak_rss_bytes)}"
        lines.append(f"transformers, {other.dtype}: real-time factor {other.real_time_factor:.4f}, {costs}")
        lines.append(_others("transformers: ", other.others_share))
    return lines


def _others(of: str, share: float | None) -> str:
    """What other programs took of the machine, and whether that spoils the figures."""
    from dasheng_edge.runtime.machine.load import busy

    took = f"{of}other programs took {'an unknown part' if share is None else format(share, '.0%')} of the machine"
    return f"BUSY: {took}; these are no figures of its speed, measure again without them" if busy(share) else took


def _megabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:,.0f} MB"
