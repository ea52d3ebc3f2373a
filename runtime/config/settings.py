"""What a user set once and for all: a TOML file of `key = value` lines, and environment variables above it.

Only the command line reads them; a program that imports this package says what it wants.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from dasheng_edge.runtime.atomic_output import replace_text
from dasheng_edge.runtime.errors import ConfigError, OutputWriteError
from dasheng_edge.runtime.machine.user_folders import CONFIG_VARIABLE, config_file
from dasheng_edge.runtime.names import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Value: TypeAlias = str | int | float | bool
MAX_BYTES = 1 << 20  # of the file, which has a few lines
_AT = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)")
_VALUE = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s#"']+)"""  # on one line, as `set` writes them


@dataclass(frozen=True)
class Key:
    """A setting: the option of this name, wherever a command that takes a bundle has it."""

    kind: type[Value]
    text: str
    unless: tuple[str, ...] = ()  # options, or option=pattern, that it makes no sense with: typed, they win
    but: tuple[str, ...] = ()  # commands that mean something else by it

    @property
    def expected(self) -> str:
        """What values are, in words."""
        return {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}[self.kind]


KEYS: Mapping[str, Key] = {
    "bundle": Key(str, "the bundle where none is named: a folder, or a name in the folder of bundles"),
    "device": Key(str, "cpu, cuda or auto, or one for each part"),
    "allow_tf32": Key(bool, "whether a GPU may round what an fp32 encoder multiplies"),
    "threads": Key(int, "threads of each part"),
    "low_memory": Key(bool, "whether encoder and decoder are never in memory together", ("device=*cuda*",)),
    "prompt": Key(str, "what to ask", ("ask",)),
    "system": Key(str, "system text"),
    "max_new_tokens": Key(int, "longest answer, in tokens"),
    "temperature": Key(float, "0: always the likeliest token"),
    "format": Key(str, "how captions are written, one format or several", ("json", "stream", "live", "out=*.*")),
    "style": Key(str, "how subtitles are written"),
    "window": Key(float, "seconds of a window of a file", ("live",), ("listen",)),
    "hop": Key(float, "seconds from one window to the next", ("live", "window"), ("listen",)),
    "batch": Key(int, "how many answers are made together", ("live", "stream")),
    "strict": Key(bool, "whether files of which something is missing are refused"),
}


@dataclass(frozen=True)
class Setting:
    """A value, and where it comes from."""

    value: Value
    origin: str  # "$DASHENG_EDGE_THREADS", or file and line; "" if it was typed

    def error(self, key: str, why: str) -> ConfigError:
        """What is wrong with it."""
        return ConfigError(": ".join(filter(None, (self.origin, key, why))))


def settings(environ: Mapping[str, str] | None = None) -> dict[str, Setting]:
    """What holds where the command line says nothing: the environment's values, and those of the file beneath them.

    Raises:
        ConfigError: the file or a variable cannot be understood.
    """
    environ = os.environ if environ is None else environ
    file = config_file()
    found = {} if file is None else read_config(file)
    for key in KEYS:
        if text := environ.get(variable(key)):  # "" is as good as none
            origin = f"${variable(key)}"
            found[key] = Setting(parsed(key, text, origin), origin)
    return found


def variable(key: str) -> str:
    """The environment variable of a key."""
    return f"DASHENG_EDGE_{key.upper()}"


def parsed(key: str, text: str, origin: str) -> Value:
    """What somebody typed as the value of a key.

    Raises:
        ConfigError: it is of another kind.
    """
    expected = KEYS[key]
    try:
        return {"true": True, "false": False}[text.lower()] if expected.kind is bool else expected.kind(text)
    except (KeyError, ValueError):
        raise Setting(text, origin).error(key, f"got {text!r}, expected {expected.expected}") from None


def read_config(path: Path) -> dict[str, Setting]:
    """The settings of a file, none if it does not exist. Whether an option takes a value is for the option to say.

    Raises:
        ConfigError: the file cannot be read, is no TOML, has a key that is not known, or a value of another kind.
    """
    text = _read(path)
    found = {}
    for key, value in _parse(path, text).items():
        origin = f"{path}{_line_of(key, text)}"
        check_key(key, f"{origin}: ")
        kind = KEYS[key].kind
        if type(value) is int and kind is float:
            value = float(value)  # noqa: PLW2901  # TOML tells 30 from 30.0
        found[key] = Setting(value, origin)
        if type(value) is not kind:
            shown = json.dumps(value, ensure_ascii=False, default=str)
            raise found[key].error(key, f"got {shown}, expected {KEYS[key].expected}")
    if "hop" in found and "window" not in found:
        raise found["hop"].error("hop", "it says how windows follow each other; set window too")
    return found


def check_key(key: str, origin: str = "") -> None:
    """Refuse a key that is not known.

    Raises:
        ConfigError: it is not.
    """
    if key not in KEYS:
        raise ConfigError(f"{origin}there is no setting {key!r}; {did_you_mean(key.replace('-', '_'), [*KEYS])}")


def change_config(key: str, value: Value | None) -> Path:
    """Set a key in the user's file, or remove it (None); comments and other lines stay. Returns the file.

    Raises:
        ConfigError: the file cannot be understood, or not be changed line by line.
        OutputWriteError: there is no place for it, or it cannot be written.
    """
    path = config_file()
    if path is None:
        raise OutputWriteError(
            f"there is no place for settings: {CONFIG_VARIABLE} is off, or there is no home; set it to a file"
        )
    path = Path(os.path.realpath(path))  # of a link, what it leads to is replaced
    before = _read(path)
    values = _parse(path, before)
    if key not in values:
        check_key(key)
    after = _changed(before, key, value)
    expected = {name: old for name, old in values.items() if name != key} | ({} if value is None else {key: value})
    changed = None
    with suppress(ValueError):
        changed = tomllib.loads(after)
    if changed != expected:  # as of a text of many lines, or below the head of a section
        raise ConfigError(f"{path}{_line_of(key, before)}: {key} cannot be changed there by a program; edit it by hand")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, after)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise OutputWriteError(f"cannot write {path}: {why}; name another file with {CONFIG_VARIABLE}") from error
    return path


def _changed(text: str, key: str, value: Value | None) -> str:
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)  # TOML knows no other ends, such as those that `splitlines` has
    own = re.compile(rf"(\s*{_named(key)}\s*=\s*){_VALUE}(\s*(?:#.*)?)", re.DOTALL)
    for place, line in enumerate(lines):
        if match := own.fullmatch(line):
            lines[place] = "" if value is None else f"{match[1]}{_toml(value)}{match[2]}"
            return "".join(lines)
    if value is None:
        return text
    return "".join([*lines, "\n" if lines and not text.endswith("\n") else "", f"{key} = {_toml(value)}\n"])


def _toml(value: Value) -> str:
    """A value as TOML has it, which for these kinds is as JSON has it, but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", r"\u007f")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot read the settings in {path}: {why}; mend it, or name another: {CONFIG_VARIABLE}"
        ) from error
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{path} has more than {MAX_BYTES} bytes, expected a few lines; name another: {CONFIG_VARIABLE}"
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: expected UTF-8, got other bytes; write the line again") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        found = _AT.search(str(error))
        line = int(found[1]) if found and found[1] else len(text.rstrip().split("\n"))
        wrong = _line(text.split("\n"), line)
        why = "it is nested too deeply" if isinstance(error, RecursionError) else _AT.sub("", str(error))
        raise ConfigError(
            f"{path}, line {line}: {wrong} is no setting ({why}); write `key = value`, with texts in quotes"
        ) from error


def _line(lines: Iterable[str], number: int) -> str:
    """A line to be shown, not all of a long one."""
    text = dict(enumerate(lines, 1)).get(number, "").strip()
    return repr(f"{text[:60]}..." if len(text) > 60 else text) if text else "the end"


def _line_of(key: str, text: str) -> str:
    """`, line 3` for the line where a key or a section is; "" where it is not seen."""
    head = re.compile(rf"\s*\[*\s*{_named(key)}\s*[\].=]")
    return next((f", line {number}" for number, line in enumerate(text.split("\n"), 1) if head.match(line)), "")


def _named(key: str) -> str:
    """A key as TOML lets it be written."""
    return rf"""(?:{re.escape(key)}|"{re.escape(key)}"|'{re.escape(key)}')"""
