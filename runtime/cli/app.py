"""The command line: one command per verb. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import inspect
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from dasheng_edge.runtime.errors import DashengEdgeError
from dasheng_edge.runtime.machine.installation import install_line
from dasheng_edge.runtime.machine.memory import short_of_memory
from dasheng_edge.runtime.names import address_hint, fitted, moves, printable
from dasheng_edge.runtime.output.caption_formats import CAPTION_FORMATS
from dasheng_edge.runtime.progress import typed_path

from .bench import bench
from .caption import caption
from .config import config, print_first_steps, with_defaults
from .doctor import doctor
from .embed import embed
from .info import info, upgrade
from .listen import listen
from .options import say, wrong_parameter
from .plan import plan
from .serve import serve
from .talk import ask, chat
from .tune import tune
from .verify import verify

COMMANDS = (caption, ask, chat, listen, serve, embed, verify, info, doctor, plan, bench, tune, config, upgrade)
# Each has COMMANDS of its own; loaded by name, since the runtime must not import upwards.
COMMAND_MODULES = ("dasheng_edge.export.cli", "dasheng_edge.quant.cli")
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # of the parser; Typer does not name it
_SWITCH_VALUES = ("true", "false", "yes", "no", "on", "off")
_EPILOG = """\
Without a command, it says what to do first.

Results go to stdout, everything else to stderr. With --json, stdout holds JSON objects, one on a line: one per audio
file or window of caption and embed, one in all of the other commands. An audio file that fails has error and
error_type in its object.

Exit codes: 0 done, 1 failed (a line on stderr says why; `verify` ends with 3 or 4 where the bundle is good), 2 wrong
usage, 130 interrupted.
"""


class _Group(TyperGroup):
    """Turns our errors and Ctrl-C into one line and an exit code, whichever command they come from."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # the type is Click's own
        try:
            with _signals_raised():
                return super().invoke(ctx)
        except DashengEdgeError as error:
            say(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except _UsageError as error:
            wrong = cast("typer.BadParameter", error)  # or another that has the same but for names of parameters
            nameless = isinstance(error, typer.BadParameter) and not (wrong.param or wrong.param_hint)
            message = wrong.message if nameless else wrong.format_message()  # which puts "Invalid value:" before it
            shown = fitted(f"Error: {printable(message)}", sys.stderr).removeprefix("Error: ")
            raise _UsageError(shown, wrong.ctx or ctx) from error
        except (MemoryError, ImportError) as error:  # a library that does not fit is an ImportError
            if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("dasheng_edge"):
                say(f"error: {error.name} is not installed, which all of dasheng-edge needs; run {install_line()}")
                raise typer.Exit(1) from error
            if (why := short_of_memory(error)) is None:
                raise
            say(f"error: there is not enough memory ({why}): free some, or take a smaller model")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            over = "\r" if moves(sys.stderr) else ""  # what terminals write at Ctrl-C
            typer.echo(f"{over}interrupted", err=True)
            raise typer.Exit(130) from error


class _Command(TyperCommand):
    """Names arguments without their types in its help; refuses addresses for paths, and a value behind a switch."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # as above
        return [piece.translate({ord(brace): None for brace in "{}"}) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # as above
        records = {param: param.get_help_record(ctx) for param in self.get_params(ctx)}
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            rows = [record for param, record in records.items() if record and param.param_type_name == kind]
            if rows:
                with formatter.section(title):
                    rows = [(name.partition(" <")[0].strip("[]"), _in_words(text)) for name, text in rows]
                    formatter.write_dl(rows, col_max=min(30, formatter.width // 3))  # 30 is what it is without

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # as above
        given = [*args]
        try:
            return self._parsed(ctx, args)
        except _UsageError as error:
            word = getattr(error, "option_name", "").lstrip("-")  # which there is not
            if word in CAPTION_FORMATS and any("--format" in param.opts for param in self.params):
                ctx.fail(f"there is no option --{word}; write --format {word}")
            files = [word for word in given if os.path.isfile(word)]  # noqa: PTH113  # raises nothing
            if dashed := [word for word in files if word.startswith("-")]:
                error.message += f" (a file whose name begins with a dash is written ./{dashed[0]})"  # type: ignore[attr-defined]
            elif files and "extra argument" in str(error) and any("--from" in param.opts for param in self.params):
                error.message += f" (to listen to a file: --from {typed_path(files[-1])})"  # type: ignore[attr-defined]
            raise

    def _parsed(self, ctx: typer.Context, args: list[str]) -> list[str]:
        switches = {name for param in self.params if getattr(param, "is_flag", False) for name in param.opts}
        for switch, value in pairwise(args):
            if switch in switches and value.lower() in _SWITCH_VALUES and not os.path.lexists(value):
                ctx.fail(f"{switch} takes no value; leave {value!r} out")
        defaults = with_defaults(self, ctx, args)
        ctx.default_map = {name: setting.value for name, (_, setting) in defaults.settings.items()}
        try:
            rest = super().parse_args(ctx, defaults.words)
        except typer.BadParameter as error:
            error.message = wrong_parameter(error)  # Typer passes pydantic's words on
            name = error.param.name if error.param else None
            if name in defaults.settings:
                key, setting = defaults.settings[name]
                raise setting.error(key, error.message) from error
            raise
        # Before 0.29, Typer makes paths of texts only when the command is called, and tells by their type.
        texts = {param.name for param in self.params if getattr(getattr(param, "type", None), "name", "") == "path"}
        for name, value in ctx.params.items():
            for path in value if isinstance(value, (list, tuple)) else [value]:
                is_path = isinstance(path, Path) or (path and name in texts)
                if is_path and (hint := address_hint(Path(path))):
                    ctx.fail(hint)
        return rest


def _in_words(text: str) -> str:
    """What a help page says of an option, with limits as people say them: [x>=1], [0<=x<=1]."""
    for limits, words in ((r"([\d.]+)<=x<=([\d.]+)", r"\1 to \2"), (r"\bx>=", "at least "), (r"\bx<=", "at most ")):
        text = re.sub(limits, words, text)
    return text


def build_app() -> typer.Typer:
    """The command line with the commands of all packages that are installed."""
    app = typer.Typer(
        cls=_Group,
        invoke_without_command=True,  # `_root` says what to do first
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain text: Rich's tables cut the names of options on a terminal of 80 columns
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        epilog=_flowing(_EPILOG),
    )
    app.callback()(_root)
    modules = [import_module(name) for name in COMMAND_MODULES if _is_there(name)]
    for command in (*COMMANDS, *(command for module in modules for command in module.COMMANDS)):
        text = _flowing(inspect.getdoc(command) or "")
        app.command(cls=_Command, help=text, short_help=text.partition("\n")[0])(command)
    return app


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


def _flowing(text: str) -> str:
    """Paragraphs without the line ends of the source: those on a terminal are others."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def main() -> None:
    """The command line, as `dasheng_edge.__main__` begins it."""
    _check_streams()
    try:
        build_app()(prog_name="dasheng-edge")
    except OSError as error:  # none of ours: stdout is full or broken, or a file that nobody guards
        place = f"use {error.filename}" if error.filename else "write results"
        with suppress(OSError):  # stderr may be as full
            say(f"error: cannot {place}: {error.strerror or error}")
        sys.exit(1)


def _check_streams() -> None:
    """Make what is printed printable, and refuse to work where results go nowhere."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:  # or a file of ours gets the number of a stream that is
        pass  # closed, and with it what C libraries print
    os.close(number)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a caption or path may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is None:
        typer.echo("error: stdout is closed, so results have nowhere to go; send it to a file", err=True)
        sys.exit(1)


@contextmanager
def _signals_raised() -> Generator[None]:
    """A signal ends a command like an error does, so that nothing half-written stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _: object) -> None:
    sys.exit(128 + number)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dasheng-edge {version('dasheng-edge')}")
        raise typer.Exit


def _root(
    ctx: typer.Context,
    _: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Captions audio, answers questions about it and embeds it, offline: MiDashengLM in ONNX Runtime and llama.cpp."""
    if ctx.invoked_subcommand is None:
        print_first_steps()
        raise typer.Exit(2)  # as Click's groups and git, which fail, too: nothing was done
