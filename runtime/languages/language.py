"""Languages: as people name them, and as models, containers of video and documents write them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

from dasheng_edge.runtime.errors import LanguageError
from dasheng_edge.runtime.names import did_you_mean

from .table import NAMED, UNNAMED

_LOCAL = re.compile("q[a-t][a-z]")  # which ISO 639-2 leaves to its users
_TAG = re.compile(  # BCP 47: language, extended language, script, region; then variants, extensions, private use
    r"(?P<language>[a-z]{2,3})(-(?P<extended>[a-z]{3}))?(?P<script>-[a-z]{4})?(?P<region>-([a-z]{2}|\d{3}))?"
    r"(?P<rest>(-([a-z\d]{5,8}|\d[a-z\d]{3}))*(-[a-wyz\d](-[a-z\d]{2,8})+)*(-x(-[a-z\d]{1,8})+)?)",
    re.IGNORECASE | re.ASCII,
)
_EXPECTED = "expected a tag such as en, deu or pt-BR, or a name in English"


@dataclass(frozen=True)
class Language:
    """A language, perhaps as it is written or spoken somewhere."""

    tag: str  # of BCP 47: "en", "pt-BR", "zh-Hant"
    terminology: str  # three letters of ISO 639-2/T: "deu"
    bibliographic: str  # three letters of ISO 639-2/B: "ger"

    @property
    def code(self) -> str:
        """Two letters where there is such a code, else three: "pt" of "pt-BR"."""
        return self.tag.partition("-")[0]


def language_of(text: str) -> Language:
    """The language that a code of ISO 639, a tag of BCP 47 or a name in English means.

    Raises:
        LanguageError: it means none.
    """
    found = find_language(text)
    if found is None:
        first = find_language(re.split(r"[\W_]", text.strip())[0])
        likely = _languages().keys() - set(UNNAMED.split())
        names = sorted(name.title() if len(name) > 3 else name for name in likely if (len(name) > 3) == (len(text) > 3))
        hint = f"did you mean {first.tag}? {_EXPECTED}" if first else did_you_mean(text, names, _EXPECTED)
        raise LanguageError(f"{text!r} is no language that is known; {hint}")
    return found


def find_language(text: str) -> Language | None:
    """The same; None where it means no language that is known."""
    text = text.strip()
    if (known := _known(text.replace("_", " "))) is not None:
        return known
    tag = _TAG.fullmatch(text.replace("_", "-"))
    known = _known(tag["extended"] or tag["language"]) if tag else None
    if tag is None or known is None:
        return None
    script, region = (tag["script"] or "").title(), (tag["region"] or "").upper()
    return replace(known, tag=known.tag + script + region + tag["rest"].lower())


def _known(word: str) -> Language | None:
    word = word.lower()
    return Language(word, word, word) if _LOCAL.fullmatch(word) else _languages().get(word)


@cache
def _languages() -> dict[str, Language]:
    """By all codes and names, in lower case."""
    found = {}
    for row in f"{NAMED} {UNNAMED}".split():
        words = row.split("=")
        three = [word for word in words if len(word) == 3 and word.islower()]
        language = Language(words[0], three[0], three[min(1, len(three) - 1)])
        found.update({word.lower().replace("_", " "): language for word in words})
    return found
