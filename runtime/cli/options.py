"""What the commands share: arguments and options, and how results are printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, get_args

import typer

from dasheng_edge.runtime.machine.devices import Device, DeviceChoice, checked_device, choose_device


def device_of(choice: str) -> Device:
    """The device that was asked for; says on stderr which one "auto" is, and why."""
    if choice not in (known := get_args(DeviceChoice)):
        raise typer.BadParameter(f"unknown device {choice!r}; expected one of {', '.join(known)}")
    if choice != "auto":
        return checked_device(choice)
    device, why = choose_device()
    typer.echo(f"device: {device} ({why})", err=True)
    return device


BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder made by `dasheng-edge export`.")]
AudioArgument = Annotated[list[str], typer.Argument(metavar="AUDIO", help="Audio or video files; - is stdin.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
DeviceOption = Annotated[
    Device,
    typer.Option(
        parser=device_of, metavar="DEVICE", help="Where all parts run: cpu, cuda, or auto for cuda if all have it."
    ),
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads; default: one per usable core.")]
Sha256Option = Annotated[
    bool, typer.Option("--check-sha256/--no-check-sha256", help="Check the content of all files first.")
]


def check_stdin(audio: list[str]) -> None:
    """Whether stdin can be read where it is named."""
    if "-" in audio and sys.stdin is None:
        raise typer.BadParameter("stdin (-) is closed; pipe audio into the command or name a file")
    if audio.count("-") > 1:
        raise typer.BadParameter("stdin (-) can be read only once")


def print_json(value: object, indent: int | None = None) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=indent))


def print_table(table: object) -> None:
    """Print what Rich draws to stdout."""
    from rich.console import Console

    console = Console()
    # Piped, Rich assumes 80 columns and would break long values.
    Console(width=None if console.is_terminal else 120).print(table)
