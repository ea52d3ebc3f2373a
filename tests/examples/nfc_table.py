"""The table by which the C++ example tells whether a text is in Unicode's form NFC.

python -m tests.examples.nfc_table > examples/cpp/src/unicode_nfc.inc
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator
from itertools import groupby
from textwrap import wrap

UNSURE = 255
_SURROGATES = range(0xD800, 0xE000)


def rows() -> Iterator[tuple[int, int, int]]:
    """First and last character and their combining class; UNSURE: they may not be there, or may compose, in NFC."""
    characters = [chr(code) for code in range(sys.maxunicode + 1)]
    composes = {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}  # Hangul, by rule
    for one in characters:
        parts = unicodedata.decomposition(one).split()
        if len(parts) == 2 and not parts[0].startswith("<") and unicodedata.is_normalized("NFC", one):
            composes.add(chr(int(parts[1], 16)))

    def kind(code: int) -> int:
        one = characters[code]
        if code in _SURROGATES:
            return 0
        unsure = one in composes or not unicodedata.is_normalized("NFC", one)
        return UNSURE if unsure else unicodedata.combining(one)

    for value, codes in groupby(range(len(characters)), kind):
        listed = list(codes)
        if value:
            yield listed[0], listed[-1], value


def table() -> str:
    """The file."""
    items = " ".join(f"{{{first:#x},{last:#x},{value}}}," for first, last, value in rows())
    return (
        "// First and last character, and combining class; 255: may not be there, or may compose, in Unicode's form\n"
        "// NFC."
        f" Made by `python -m tests.examples.nfc_table`, of Unicode {unicodedata.unidata_version}.\n"
        + "\n".join(wrap(items, 118))
        + "\n"
    )


if __name__ == "__main__":
    sys.stdout.write(table())
