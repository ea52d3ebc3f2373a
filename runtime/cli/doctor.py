"""`dasheng-edge doctor`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import typer

from .options import JsonOption, print_json, print_table

if TYPE_CHECKING:
    from dasheng_edge.runtime.machine.doctor import DoctorReport


def doctor(as_json: JsonOption = False) -> None:
    """Examine this machine and installation.

    The exit code is 1 if captioning will not work.
    """
    from dasheng_edge.runtime.machine.doctor import examine

    report = examine()
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        _print_doctor(report)
    if report.problems:
        raise typer.Exit(1)


def _print_doctor(report: DoctorReport) -> None:
    from rich.table import Table
    from rich.text import Text

    memory = f"{report.memory_gib:.1f} GiB" if report.memory_gib is not None else "unknown"
    versions = [f"{name} {found or '- not installed'}" for name, found in report.versions.items()]
    table = Table(title="dasheng-edge doctor", show_header=False)
    for key, value in {
        "Python": report.python,
        "system": report.os,
        "CPU": f"{report.cpu}, {report.usable_cores} usable cores",
        "CPU features": " ".join(report.cpu_flags) or "unknown",
        "memory": memory,
        "packages": "\n".join(versions),
        "ONNX Runtime": ", ".join(report.onnx_providers) or "none",
        "llama.cpp": f"{report.llama_system or 'none'}\nGPU offload: {'yes' if report.llama_gpu_offload else 'no'}",
        "optional": "\n".join(f"{name}: {line}" for name, line in report.missing_extras.items()) or "all there",
        "problems": "\n".join(report.problems) or "none",
    }.items():
        table.add_row(key, Text(value), end_section=True)
    print_table(table)
