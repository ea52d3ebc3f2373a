"""What the commands share: arguments, options, and how results are printed."""

from __future__ import annotations

import glob
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from pydantic import BaseModel, ValidationError

from dasheng_edge.runtime.config.default_bundle import bundle_path, stored_bundles
from dasheng_edge.runtime.errors import DeviceError, LanguageError, MissingExtraError
from dasheng_edge.runtime.languages.language import Language, language_of
from dasheng_edge.runtime.machine.devices import DeviceChoice, Placement
from dasheng_edge.runtime.machine.installation import install_line
from dasheng_edge.runtime.names import did_you_mean, fitted, known_name, printable, printable_json

if TYPE_CHECKING:
    from rich.table import Table

    from dasheng_edge.runtime.engine_options import EngineOptions


def name_option(
    names: Sequence[str], metavar: str, text: str, listed: str = "", *, flag: str | None = None, others: str = ""
) -> Any:
    """An option that takes one of a closed set of names, in any case; the help lists them, as `listed` if given.

    `others` tells those who ask for another name where that is to be had.
    """

    def parse(text: str) -> str:  # a function: older typers ask for its name
        return _parse_name(text, names, others)

    return typer.Option(
        *([flag] if flag else []),
        parser=parse,
        autocompletion=lambda: [*names],
        metavar=metavar,
        help=f"{text}: {listed or ', '.join(names)}.",
    )


def language_option(text: str) -> Any:
    """An option that takes a language; `text` is its help."""
    return typer.Option(parser=_parse_language, metavar="LANGUAGE", help=text)


def _parse_language(text: str) -> Language:
    try:
        return language_of(text)
    except LanguageError as error:
        raise typer.BadParameter(str(error)) from error


def _parse_name(text: str, names: Sequence[str], others: str = "") -> str:
    name = known_name(text, names)
    if name is None:
        raise typer.BadParameter("; ".join(filter(None, (f"{text!r} is not known", did_you_mean(text, names), others))))
    return name


def device_of(choice: str | Placement) -> Placement | None:
    """Where the parts are to be; None: "auto", which hangs on the bundle."""
    if isinstance(choice, Placement):  # a default
        return choice
    if "=" in choice:
        try:
            return Placement.parse(choice)
        except DeviceError as error:
            raise typer.BadParameter(str(error)) from error
    choice = _parse_name(choice, get_args(DeviceChoice))
    return None if choice == "auto" else Placement.parse(choice)


def complete_bundle(incomplete: str) -> list[str]:
    """Names of stored bundles, and paths beside them; none, so that the shell completes files, where no name fits."""
    if not (names := [name for name in stored_bundles() if name.startswith(incomplete)]):
        return []
    with suppress(OSError):
        names += [path + os.sep * os.path.isdir(path) for path in glob.glob(f"{glob.escape(incomplete)}*")]  # noqa: PTH112, PTH207
    return names


def bundle_argument(text: str, metavar: str = "BUNDLE") -> Any:
    """An argument that is a bundle's folder, or its name in the user's folder of bundles."""
    return typer.Argument(metavar=metavar, parser=bundle_path, autocompletion=complete_bundle, help=text)


BundleArgument = Annotated[
    Path,
    typer.Argument(
        metavar="BUNDLE",
        default_factory=lambda: None,  # so that it may be left out: `with_defaults` puts one before the words
        show_default=False,
        parser=bundle_path,
        autocompletion=complete_bundle,
        help="Folder made by `dasheng-edge export`, or its name; default: see `dasheng-edge config`.",
    ),
]
AudioArgument = Annotated[list[str], typer.Argument(metavar="AUDIO", help="Audio or video files; - is stdin.")]
TrackOption = Annotated[
    str | None,
    typer.Option(metavar="N|LANG", help="Audio track, by its number from 1 or its language; default: the file's."),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Refuse files of which something is missing or does not decode.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, on one line.")]
JsonLinesOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per file, each on one line.")]
DeviceOption = Annotated[
    Placement | None,
    typer.Option(
        "--device",
        parser=device_of,
        autocompletion=lambda: [*get_args(DeviceChoice)],
        metavar="DEVICE",
        help="Where all parts run: cpu, cuda, or auto, which puts on the GPU what can be there; or each, as in "
        "encoder=cuda,decoder=cpu.",
    ),
]
Tf32Option = Annotated[
    bool,
    typer.Option(
        "--allow-tf32",
        help="Let a GPU round what an fp32 encoder multiplies to 10 bits: half the time, errors of 4e-4.",
    ),
]
LowMemoryOption = Annotated[
    bool,
    typer.Option(
        "--low-memory",
        help="Never have encoder and decoder in memory together: clips are heard, then answered. On a CPU; slower.",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Threads of each part; default: one per usable core.")
]
TokensOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Longest answer, in tokens; default: the bundle's.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Sha256Option = Annotated[
    bool, typer.Option("--check-sha256/--no-check-sha256", help="Check the content of the bundle's files first.")
]


def engine_options(
    bundle: Path,
    device: Placement | None,
    threads: int | None,
    allow_tf32: bool = False,
    low_memory: bool = False,
    *,
    mapped: bool = False,
    few: bool | None = None,
) -> EngineOptions:
    """How the engines run: `--threads` holds for each part; `mapped` leaves the weights in the pages of their file.

    `few`: whether so few clips come that parts on a GPU are not warmed up; None: see `EngineOptions.warm_up`.

    Says on stderr what "auto" is for this bundle, and why.
    """
    from dasheng_edge.runtime.engine_options import EngineOptions

    options = EngineOptions(
        weights="mapped" if mapped else None, allow_tf32=allow_tf32, warm_up=None if few is None else not few,
        memory="low" if low_memory else "normal",
    ).changed(threads=threads)  # fmt: skip
    if device is None:
        from dasheng_edge.runtime.parts import choose_placement

        device, why = choose_placement(bundle, options)
        say(f"device: {device} ({why})")
    return options.placed(device)


def check_stdin(audio: Sequence[str]) -> None:
    """Refuse stdin that cannot be read, or is asked for twice."""
    if "-" in audio and sys.stdin is None:
        raise typer.BadParameter("stdin (-) is closed; pipe audio into the command or name a file")
    if list(audio).count("-") > 1:
        raise typer.BadParameter("stdin (-) can be read only once")


def wrong_value(error: ValidationError) -> str:
    """What was got and what is expected, of a value that an option refuses."""
    first = error.errors()[0]
    text = first["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
    return text.replace("Input should be", f"got {first['input']}, expected")


def wrong_parameter(error: typer.BadParameter) -> str:
    """The same in the words of whichever reader of options refused it."""
    return wrong_value(error.__cause__) if isinstance(error.__cause__, ValidationError) else error.message


def load(module: str, command: str, *extras: str) -> Any:
    """A module that needs extras; a library that is not installed costs one line, which says how to install it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("dasheng_edge"):
            raise
        raise MissingExtraError(
            f"{command} needs {error.name}, which is not installed; run {install_line(*extras)}"
        ) from error


def say(line: str) -> None:
    """Print a line that is no result, whatever names are in it."""
    typer.echo(fitted(printable(line), sys.stderr), err=True)


def show(line: str) -> None:
    """Print a line of a result, whatever names are in it."""
    typer.echo(printable(line))


def print_json(value: object) -> None:
    """Print one object on one line, which is what `--json` promises."""
    line = value.model_dump_json() if isinstance(value, BaseModel) else json.dumps(value, ensure_ascii=False)
    typer.echo(printable_json(line))


def print_table(table: Table) -> None:
    """Print a table to stdout; what is wider than the terminal goes on in the next line, and [x] is no markup."""
    from rich.console import Console
    from rich.text import Text

    for column in table.columns:
        column.overflow = "fold"

    class Printable(Console):
        """Shows what would steer the terminal in the texts of a table."""

        def render_str(self, text: str, **style: Any) -> Text:
            return super().render_str(printable(text, keep="\n"), **style)

    # Piped, Rich assumes 80 columns and would break long values.
    width = None if Console().is_terminal else 120
    Printable(width=width, markup=False, emoji=False).print(table)
