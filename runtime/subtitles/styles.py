"""How sounds are written: a table. A style of one's own is another row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dasheng_edge.runtime.errors import SubtitleError
from dasheng_edge.runtime.names import did_you_mean


@dataclass(frozen=True)
class Style:
    """One way to write sounds."""

    before: str = ""  # the label
    after: str = ""
    labels: bool = True  # sentences become labels, one a sound; or they stay what they are
    at_once: int = 2  # labels in a cue, 1 or 2
    continues_s: float | None = None  # how long a sound lasts before it is said to continue, 7 s at least; None: never


STYLES: Mapping[str, Style] = {
    # Subtitles for the deaf and hard of hearing, by DCMP's Captioning Key: [dog barks].
    "sdh": Style(before="[", after="]", continues_s=15.0),
    "sentence": Style(labels=False, at_once=1),
    "plain": Style(),
}


def style_named(name: str) -> Style:
    """A row of the table.

    Raises:
        SubtitleError: there is none of this name.
    """
    if name not in STYLES:
        raise SubtitleError(f"there is no style {name!r} of subtitles: {did_you_mean(name, list(STYLES))}")
    return STYLES[name]
