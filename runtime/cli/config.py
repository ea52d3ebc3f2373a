"""`dasheng-edge config`, how settings and the default bundle come into the words that were typed, and first steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from dasheng_edge.runtime.config.default_bundle import (
    SMALLEST_MODEL,
    check_bundle,
    default_bundle,
    names_bundle,
    place_for,
    stored_bundles,
)
from dasheng_edge.runtime.config.settings import KEYS, Setting, change_config, check_key, parsed, settings
from dasheng_edge.runtime.errors import BundleNotFoundError, ConfigError
from dasheng_edge.runtime.machine.installation import install_line
from dasheng_edge.runtime.machine.user_folders import bundles_folder, config_file
from dasheng_edge.runtime.names import printable
from dasheng_edge.runtime.progress import typed_path

from .options import JsonOption, print_json, show, wrong_parameter

_COLUMN = 2 + max(map(len, KEYS))
_EXPORT_NEEDS = ("huggingface_hub", "torch", "transformers", "onnx")
Action = Literal["list", "path", "set", "unset"]


def config(
    ctx: typer.Context,
    action: Annotated[
        Action, typer.Argument(metavar="ACTION", help=f"What to do: {', '.join(get_args(Action))}.")
    ] = "list",
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="Setting to change.", autocompletion=lambda: [*KEYS])
    ] = None,
    value: Annotated[str | None, typer.Argument(metavar="VALUE", help="What to set it to.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show or change what holds where the command line says nothing.

    Without ACTION, lists each setting, its value, and where that comes from. `set KEY VALUE` and `unset KEY` change a
    TOML file, whose place `path` prints; its comments stay. A setting is the option of the same name, for every command
    that takes a bundle: the command line beats the environment ($DASHENG_EDGE_THREADS), which beats the file.

    The bundle where none is named is that of the setting, or the only one in the folder of bundles. Bundles in that
    folder can be called by their names.
    """
    _check_words(action, key, value)
    if action == "list":
        _list(ctx, as_json=as_json)
    elif action == "path":
        show(str(config_file() or "off"))
    elif key and value is not None:
        show(f"{key} is set in {change_config(key, _checked(ctx, key, value))}")
    elif key:
        show(f"{key} is not set in {change_config(key, None)}")


def _check_words(action: Action, key: str | None, value: str | None) -> None:
    """Refuse too few words and too many."""
    wanted = {"set": ("KEY", "VALUE"), "unset": ("KEY",)}.get(action, ())
    given = [word for word in (key, value) if word is not None]
    if len(given) != len(wanted):
        usage = " ".join(("dasheng-edge config", action, *wanted))
        raise typer.BadParameter(f"{action} takes {' and '.join(wanted) or 'no more words'}: {usage}")


def _checked(ctx: typer.Context, key: str, text: str) -> Any:
    """A value that was typed, as the options of its name take it."""
    check_key(key)
    if key == "bundle":
        return check_bundle(text)
    setting = Setting(parsed(key, text, ""), "")
    _check_value(ctx, key, setting)
    return setting.value


def _check_value(ctx: typer.Context, key: str, setting: Setting) -> None:
    """Refuse what an option of this name refuses. Which device "auto" is takes long to find, and is always one."""
    if key == "bundle" or (key, setting.value) == ("device", "auto"):
        return
    group: Any = ctx.find_root().command
    for command in group.commands.values():
        if param := _params(command).get(key):
            try:
                param.process_value(typer.Context(command, parent=ctx), setting.value)
            except typer.BadParameter as error:
                raise setting.error(key, wrong_parameter(error)) from error


def _list(ctx: typer.Context, *, as_json: bool) -> None:
    found = settings()
    for key, setting in found.items():
        _check_value(ctx, key, setting)
    why = ""
    if "bundle" not in found:
        try:
            default = default_bundle(found)
            found["bundle"] = Setting(str(default.path), default.origin)
        except BundleNotFoundError as error:
            why = str(error)
    file, folder = config_file(), bundles_folder()
    if as_json:
        values = {key: vars(found[key]) if key in found else None for key in KEYS}
        print_json({"file": _text(file), "bundles_folder": _text(folder), "settings": values})
        return
    lines = [f"{key} = {json.dumps(found[key].value, ensure_ascii=False)}  ({found[key].origin})" for key in found]
    lines = ["set:", *(f"  {line}" for line in lines)] if lines else []
    lines += ["not set:", *(f"  {key:{_COLUMN}}{known.text}" for key, known in KEYS.items() if key not in found)]
    for line in [*lines, f"file: {file or 'off'}{'' if file and file.exists() else ' (not there)'}"]:
        show(line)
    show(f"folder of bundles: {folder}")
    if why:
        show(why)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _params(command: Any) -> dict[str, Any]:
    """Key -> the parameter that it sets; none for a command that takes no bundle, whose options mean other things."""
    if not _may_be_left_out(command):
        return {}
    names = {option: param for param in command.params for option in param.opts}
    found = {
        key: names.get("--" + key.replace("_", "-")) for key, known in KEYS.items() if command.name not in known.but
    }
    return {key: param for key, param in found.items() if param is not None}


@dataclass(frozen=True)
class Defaults:
    """What holds for the words of one command where they say nothing."""

    words: list[str]  # those that were typed, behind the default bundle if they name none
    settings: dict[str, tuple[str, Setting]]  # key and value of each parameter that no option was typed for


def with_defaults(command: Any, ctx: typer.Context, args: list[str]) -> Defaults:
    """The words and settings that a command runs with.

    Raises:
        DashengEdgeError: the settings cannot be understood, or no bundle is named and there is none by default.
    """
    options = _params(command)
    if ctx.resilient_parsing or not _may_be_left_out(command):
        return Defaults(args, {})
    typed, _, _ = command.make_parser(ctx).parse_args(args=[*args])
    if any(typed.get(param.name) for param in command.get_params(ctx) if param.is_eager):  # as --help
        return Defaults(args, {})
    found = settings()
    named = {option: param.name for param in command.params for option in param.opts}
    used = {
        options[key].name: (key, setting)
        for key, setting in found.items()
        if key in options
        and options[key].name not in typed
        and not any(_is_typed(typed, named, option) for option in KEYS[key].unless)
    }
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    words = [word for param in arguments for word in _texts(typed.get(param.name))]
    if words and (all("BUNDLE" in param.metavar for param in arguments) or names_bundle(words)):
        return Defaults(args, used)
    try:
        return Defaults([str(default_bundle(found).path), *args], used)
    except BundleNotFoundError:
        if len(words) > 1 and Path(words[0]).is_dir():  # meant as a bundle, which is told to be none
            return Defaults(args, used)
        raise


def _is_typed(typed: Mapping[str, Any], named: Mapping[str, str], option: str) -> bool:
    """Whether an option was typed or, of `option=pattern`, one with such a value."""
    name, _, pattern = option.partition("=")
    parameter = named.get(f"--{name}")
    return parameter is not None and parameter in typed and fnmatchcase(str(typed[parameter]), pattern or "*")


def _may_be_left_out(command: Any) -> bool:
    """Whether a command takes `BundleArgument`, which alone is filled in by a function."""
    return any(param.name == "bundle" and callable(param.default) for param in command.params)


def _texts(words: object) -> list[str]:
    """Words that a parser has for an argument: one, several, or what stands for none."""
    return [words] if isinstance(words, str) else [*words] if isinstance(words, (list, tuple)) else []


def print_first_steps() -> None:
    """Print them to stdout, as a page of help, for `| less`."""
    steps = [
        _bundle_step(),
        ("Caption a recording, of audio or video:", ["dasheng-edge caption recording.mp3"]),
        ("If something does not work, see what is missing on this machine:", ["dasheng-edge doctor"]),
    ]
    lines = ["dasheng-edge captions audio, transcribes it and answers questions about it, offline.", ""]
    for number, (text, commands) in enumerate(steps, 1):
        lines += [f"{number}. {text}", *(f"     {command}" for command in commands)]
    lines += ["", "All commands: dasheng-edge --help. Your defaults: dasheng-edge config."]
    for line in lines:
        typer.echo(printable(line))


def _bundle_step() -> tuple[str, list[str]]:
    """What is to be done until a bundle need not be named; if nothing, how to look at it."""
    found: dict[str, Setting] = {}
    try:
        found = settings()
        default = default_bundle(found)
    except (ConfigError, BundleNotFoundError) as error:
        if isinstance(error, ConfigError) or "bundle" in found:
            return f"Mend your settings: {error}", ["dasheng-edge config path"]
        if stored := stored_bundles():
            choose = [f"dasheng-edge config set bundle {typed_path(name)}" for name in stored]
            return "Choose one of your bundles (a bundle is a folder that holds a model):", choose
        missing = any(find_spec(name) is None for name in _EXPORT_NEEDS)
        install = [install_line("export", "pull", "cpu").partition("; ")[0]] if missing else []
        pull = f"dasheng-edge pull {SMALLEST_MODEL}"
        export = f"dasheng-edge export {SMALLEST_MODEL.partition('/')[2]} --out {typed_path(place_for(SMALLEST_MODEL))}"
        return "Get a model, and make a bundle of it, a folder that runs anywhere:", [*install, pull, export]
    return f"Your bundle is {default.path} ({default.origin}); look at it:", ["dasheng-edge info"]
