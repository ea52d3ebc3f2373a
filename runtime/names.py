"""Names as people type them, in place of a file on this machine or of a word that is known here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # `Path` makes https:/ of https://; C: is a drive of Windows
_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


MAX_LISTED = 8


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


def did_you_mean(text: str, names: Sequence[str]) -> str:
    """Names like this; all of them if they are few or none is like it."""
    lower = {name.lower(): name for name in names}
    near = [] if len(names) <= MAX_LISTED else [lower[match] for match in get_close_matches(text.lower(), lower)]
    return f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(names)}"
