"""Sentences of a captioner in labels, one a sound: "a dog barks while an engine runs" is "dog barks", "engine running".

By rules, without a grammar: what they do not know stays as it is. They are of English; text in other languages is a
label a sentence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .verbs import GENERIC, PARTICIPLES, PASTS, SPEECH, THIRDS, VERBS, Verb
from .wrapping import shown

_I = re.IGNORECASE
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=\S)|(?<=[。！？])|\s*[;；]\s*|\n+")
_ENGLISH = re.compile(r"\b(the|an|is|are|was|were|and|while|with|of|followed|by|someone|people)\b", _I)
_OPENING = re.compile(
    r"^(?:(?:in|throughout) (?:this|the) (?:audio |sound )?(?:clip|recording|audio|background)[, ]+"
    r"|(?:the|this) (?:audio|sound|clip|recording|audio clip|audio recording|soundscape) "
    r"(?:features?|contains?|captures?|has|includes?|consists of|presents?|(?:starts|begins) with|is(?: that)? of) "
    r"|it (?:begins|starts|opens) with |(?:the|a) (?:faint |loud |distant )?(?:sounds?|noises?|recording) of "
    r"|(?:you|we|one) (?:can )?hears? |there (?:is|are)(?: also)? "
    r"|(?:first|firstly|then|next|finally|later|meanwhile|afterwards|also|at the same time|after that)\b,? ?)",
    _I,
)
_CLOSING = re.compile(
    r"[,\s]*\b(?:(?:can|could|may|is|are) (?:also )?(?:be )?(?:heard|audible|present)|at the same time|together"
    r"|in the (?:background|foreground))$",
    _I,
)
_HEARD = re.compile(r" (?:can|could|may|is|are) (?:also )?(?:be )?heard(?= )", _I)
# What joins two sounds: always, or where there is a verb on both sides.
_THEN = r"(?:and )?(?:(?:is |are )?followed by|then|after that|next|finally)|before"
_BESIDE = r"(?:and |is |are )?(?:accompanied by|along with|together with|mixed with|as well as)"
_PERHAPS = r"while|whilst|and|as|with|amid|amidst|alongside|over|plus"
_JOIN = re.compile(
    rf"(?:,\s*|\s+)(?:(?P<then>{_THEN})|(?P<beside>{_BESIDE})|(?P<perhaps>{_PERHAPS}))\s+|(?P<comma>,)\s+", _I
)
_ASIDE = re.compile(r"\bin the (?:background|distance)$", _I)
_ARTICLE = re.compile(r"^(?:an?|the|some)\s+(?=\S)", _I)
_AUXILIARY = frozenset({"is", "are", "was", "were", "being", "be", "been", "has", "have", "had"})
_PLURALS = frozenset({"people", "men", "women", "children", "they", "police", "geese"})
_RESULTS = frozenset({"open", "shut"})  # "slams shut"
_AFTER_VERB = re.compile(
    r"^(?:\w+ly|open|shut|an?|the|in|on|at|off|by|to|of|from|with|over|down|up|out|around|away|again)$"
)
_NAMES = frozenset({
    "Arabic", "Chinese", "Dutch", "English", "French", "German", "Hindi", "I", "Indonesian", "Italian", "Japanese",
    "Korean", "Mandarin", "Portuguese", "Russian", "Spanish", "Thai", "Turkish", "Vietnamese",
})  # fmt: skip
_MAX_NOUN_WORDS = 3  # of a sound that is named without a verb: "distant traffic noise"


@dataclass(frozen=True)
class Label:
    """A sound in words."""

    key: str  # source and verb: equal for what is one sound, however it is told
    single: str  # "dog barks"
    lasting: str  # "dog barking", which is also said of one that is heard for long
    continues: str  # "barking continues"; "" in another language
    later: bool = False  # after the one before it, not with it
    kin: str = ""  # equal for what may be one sound although it is told otherwise: who speaks is often mistaken


def labels(text: str) -> list[Label]:
    """The sounds that a text names, each once, in its order."""
    found: dict[str, Label] = {}
    for sentence in filter(None, map(str.strip, _SENTENCE_END.split(text))):
        for label in _of_sentence(shown(sentence)):
            first = not found
            found.setdefault(label.key, replace(label, later=label.later and not first))
    return list(found.values())


def sentences(text: str) -> list[Label]:
    """The whole text as one label, as it is."""
    text = shown(text)
    return [Label(text.casefold().rstrip("."), text, text, "")] if text else []


def _of_sentence(sentence: str) -> list[Label]:
    bare = re.sub(r"[.!。！\s]+$", "", sentence)
    if not bare:
        return []
    if not _is_english(bare):
        return [Label(bare.casefold(), bare, bare, "")]
    found: list[Label] = []
    subject: list[str] = []
    for clause, later in _clauses(bare):
        words = clause.split()
        if subject and _is_finite(words[0]) and _verb_at(words) is None:  # "starts and then idles"
            words = [*subject, *words]
        at = _verb_at(words)
        subject = words[: at[0]] if at else []
        found.append(replace(_label(words, at), later=later))
    return found


def _is_english(text: str) -> bool:
    """Whether the rules may be used: all letters are ASCII, and a word is of English."""
    return text.isascii() and (_ENGLISH.search(text) is not None or _verb_at(["", *text.split()]) is not None)


def _clauses(sentence: str) -> list[tuple[str, bool]]:
    """What names a sound each, and whether it comes later than the one before; the sentence itself at the least."""
    sentence = _stripped(sentence)
    marks = list(_JOIN.finditer(sentence))
    ends = [*(mark.start() for mark in marks), len(sentence)]
    starts = [0, *(mark.end() for mark in marks)]
    pieces = [sentence[start:end] for start, end in zip(starts, ends, strict=True)]
    is_list = not _is_clause(sentence) and all(len(piece.split()) <= _MAX_NOUN_WORDS for piece in pieces)
    found = [(pieces[0], False)]
    for mark, piece in zip(marks, pieces[1:], strict=True):
        before, later = found[-1]
        always = mark["then"] or mark["beside"] or (is_list and mark[0].strip(", ").lower() in ("and", ""))
        if always or (_is_clause(_stripped(before)) and _is_clause(piece)):
            found.append((piece, mark["then"] is not None))
        else:
            found[-1] = before + mark[0] + piece, later
    return [(clause, later) for piece, later in found if (clause := _stripped(piece))] or [(sentence, False)]


def _stripped(clause: str) -> str:
    """A clause without words that say no more than that something is heard; all of it if nothing else is said."""
    bare, before = _HEARD.sub(" ", clause), ""
    while bare != before:
        before = bare
        bare = _CLOSING.sub("", _OPENING.sub("", bare)).strip(" ,")
    return bare or clause.strip(" ,")


def _is_clause(piece: str) -> bool:
    return bool(_ASIDE.search(piece)) or _is_finite(piece) or _verb_at(_ARTICLE.sub("", piece).split()) is not None


def _is_finite(piece: str) -> bool:
    """Whether it begins with a verb that wants a subject, "rumbles loudly"."""
    first, *rest = piece.lower().split() or [""]
    return (first in THIRDS or first in VERBS) and not any(word in THIRDS or word in VERBS for word in rest)


def _verb_at(words: list[str]) -> tuple[int, int, Verb] | None:
    """Where subject ends and rest begins, and the verb between them; None where there is none."""
    low = [word.lower() for word in words]
    for at in range(1, len(low)):
        after = at
        while after < len(low) and low[after] in _AUXILIARY:
            after += 1
        if at < after < len(low) and (verb := PARTICIPLES.get(low[after]) or PASTS.get(low[after])):
            return at, after + 1, verb
    for at in range(1, len(low)):
        verb = THIRDS.get(low[at]) or PARTICIPLES.get(low[at]) or (VERBS.get(low[at]) if _is_plural(low[:at]) else None)
        then = low[at + 1] if at + 1 < len(low) else ""
        is_noun = low[at] in THIRDS and then not in _RESULTS and (then in VERBS or then in THIRDS)
        if verb and not is_noun:
            return at, at + 1, verb
    return next(((at, at + 1, PASTS[low[at]]) for at in range(1, len(low)) if low[at] in PASTS), None)


def _is_plural(subject: list[str]) -> bool:
    last = subject[-1].lower() if subject else ""
    return last in _PLURALS or bool(re.search(r"[^s]s$", last)) or "and" in subject


def _label(words: list[str], at: tuple[int, int, Verb] | None) -> Label:
    if at is None:
        text = _named(" ".join(words))
        goes_on = "continue" if _is_plural(text.split()) else "continues"
        return Label(text.casefold(), text, text, f"{text} {goes_on}")
    begin, end, verb = at
    subject, rest = _named(" ".join(words[:begin])), words[end:]
    plural = _is_plural(subject.split())
    single = verb.participle
    if not verb.lasting and (not rest or _AFTER_VERB.match(rest[0].lower())):
        single = verb.base if plural else verb.third
    source = f"{subject} {'continue' if plural else 'continues'}"
    return Label(
        f"{subject} {verb.base}".casefold(),
        " ".join([subject, single, *rest]),
        " ".join([subject, verb.participle, *rest]),
        source if verb.base in GENERIC else f"{verb.participle} continues",
        kin="speech" if verb.base in SPEECH else "",
    )


def _named(subject: str) -> str:
    """Without an article, in lower case unless it is a name."""
    bare = _ARTICLE.sub("", subject)
    first = bare.split()[0] if bare else ""
    keep = first in _NAMES or first[1:] != first[1:].lower()
    return bare if keep else bare[:1].lower() + bare[1:]
