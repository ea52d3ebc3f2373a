"""Names: what people type in place of a file or a word that is known here, and how a terminal may show them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TextIO

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # `Path` makes https:/ of https://; C: is a drive of Windows
_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# Control characters (ESC, line ends, those of 8-bit terminals), what turns the direction of writing, and halves of
# surrogate pairs, which no encoding can write.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_BYTES = range(0xDC80, 0xDD00)  # what Python makes of the bytes of a name that are no UTF-8

MAX_LISTED = 8


def printable(text: str, keep: str = "") -> str:
    r"""Text of others, a name or an answer, for a terminal: what would steer it is shown, ESC as `\x1b`, but `keep`.

    Bytes of a file's name that are no UTF-8 become `\xff`.
    """
    return _STEERING.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    code -= 0xDC00 if code in _BYTES else 0
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def printable_json(line: str) -> str:
    """A line of JSON that says the same and does not steer a terminal: JSON itself escapes the first 32 alone."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def moves(stream: TextIO) -> bool:
    """Whether a line of a stream can be written anew: on a terminal, unless it is one that only prints."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def columns(stream: TextIO) -> int:
    """How wide the terminal is that a stream goes to, whatever the other streams go to; 80 if it goes to none."""
    if (given := os.environ.get("COLUMNS", "")).isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def cells(text: str) -> int:
    """How many columns of a terminal a text takes: letters of Chinese and Japanese take two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def fitted(line: str, stream: TextIO) -> str:
    """A line that is broken between words if it is wider than the terminal; the same if `stream` is none."""
    if not stream.isatty() or cells(line) <= (width := columns(stream)):
        return line
    first, *words = line.split()
    lines, used = [first], cells(first)
    for word in words:
        if used + 1 + (size := cells(word)) <= width:
            lines[-1], used = f"{lines[-1]} {word}", used + 1 + size
        else:
            lines.append(word)
            used = size
    return "\n".join(lines)


def shortened(text: str, width: int) -> str:
    """A text of one line that ends behind a word with "…" where it is wider."""
    if cells(text) <= width:
        return text
    from rich.cells import set_cell_size

    start = set_cell_size(text, max(0, width - 1))
    return f"{start.rpartition(' ')[0].rstrip(' ,;') or start}…"


def address_hint(name: str | Path) -> str:
    """What to do about an address where a file is expected; "" for what may be a path."""
    if not _ADDRESS.match(str(name)):
        return ""
    address = _ADDRESS.sub(r"\1://", str(name), count=1)
    return f"{address} is an address, and nothing is fetched from there: download it, and name the file or folder"


def bundle_hint(name: str | Path) -> str:
    """What to do about the name of a model on the hub, or an address, where a bundle is expected; "" for a path."""
    text = str(name)
    if not _MODEL_ID.fullmatch(text):
        return address_hint(text)
    folder = text.partition("/")[2]
    return (
        f"if {text} is a model of the Hugging Face hub, `dasheng-edge pull {text}` downloads it, and "
        f"`dasheng-edge export {folder} --out BUNDLE` makes a bundle of it"
    )


def known_name(text: str, names: Sequence[str]) -> str | None:
    """The one of `names` that is meant, in any case; None if it is none of them."""
    return next((name for name in names if name.lower() == text.lower()), None)


def did_you_mean(text: str, names: Sequence[str], expected: str = "") -> str:
    """Names like this, and all of them if they are few or none is like it; or what is `expected` in their place."""
    lower = {name.lower(): name for name in names}
    near = [lower[match] for match in get_close_matches(text.lower(), lower)]
    if near and len(names) > MAX_LISTED:
        return f"did you mean {' or '.join(near)}? {expected}".strip()
    listed = expected or f"expected one of {', '.join(names)}"
    return f"did you mean {near[0]}? {listed}" if near else listed
