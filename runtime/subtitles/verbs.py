"""English verbs of sounds, by which clauses are told from what is none, and their forms: data, and regular endings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# One event: simple present, "dog barks". Others last: participle, "engine running".
_SINGLE = """
bang bark beep blast bleat bounce break burst clang clank clatter clear click clink close clunk collapse cough crack
crash croak crow drop explode fire flush gasp grunt hiccup hit honk hoot knock land meow moo neigh oink open pop
punch quack rip roar scream shatter shout shut slam slap smash snap sneeze sniff snort splash squawk start stop strike
tap thud thump toot tweet whack whistle yelp yell zip
"""
_LASTING = """
accelerate applaud approach babble beat blare blow boil breathe bubble burn buzz chant chat chatter cheer chime
chirp chop chug clap clop coo cook crackle creak cry cycle dance drill drip drive drone drum echo eat fade fall fan flap
flow flutter fly fry gallop giggle go grind growl gurgle hammer hiss hover howl hum idle jingle laugh march mix moan
mow mumble murmur narrate pass patter perform play pour preach purr race rattle resonate rev ring roll row rub rumble
run rush rustle sand saw scrape scratch scream scrub sew shine shuffle sing sizzle sniffle snore sob sound speak spin
splatter spray squeak squeal stir strum sway swirl swish swoosh talk tick toll trickle tune type vibrate wail walk
warble wash weep whimper whine whir whirr whisper whizz whoosh work yodel
"""
_IRREGULAR = {  # base: past forms
    "beat": "beaten", "blow": "blew blown", "break": "broke broken", "drive": "drove driven", "eat": "ate eaten",
    "fall": "fell fallen", "fly": "flew flown", "go": "went gone", "grind": "ground", "hit": "", "mow": "mowed mown",
    "ring": "rang rung", "run": "ran", "sew": "sewed sewn", "shine": "shone", "shut": "", "sing": "sang sung",
    "speak": "spoke spoken", "spin": "spun", "strike": "struck", "sweep": "swept", "weep": "wept",
}  # fmt: skip
# Those that say little without their subject: "the piano continues", not "playing continues".
SPEECH = frozenset({"chat", "narrate", "speak", "talk"})
GENERIC = frozenset({"beat", "blow", "fall", "go", "pass", "perform", "play", "run", "sound", "work"})


@dataclass(frozen=True)
class Verb:
    """A verb and its forms that are written."""

    base: str
    lasting: bool

    @property
    def third(self) -> str:
        """The simple present of the third person, "barks"."""
        if re.search(r"(s|x|z|ch|sh|o)$", self.base):
            return self.base + "es"
        return re.sub(r"([^aeiou])y$", r"\1ie", self.base) + "s"

    @property
    def participle(self) -> str:
        """The present participle, "barking"."""
        return self._stem + "ing"

    @property
    def pasts(self) -> tuple[str, ...]:
        """Past forms."""
        if self.base in _IRREGULAR:
            return tuple(_IRREGULAR[self.base].split())
        return (re.sub(r"([^aeiou])y$", r"\1i", self._stem) + "ed",)

    @property
    def _stem(self) -> str:
        """What endings that begin with a vowel are put behind."""
        if re.fullmatch(r"(qu|[^aeiou])*[aeiou][^aeiouwxy]", self.base):  # one syllable, one vowel, one consonant
            return self.base + self.base[-1]
        return self.base[:-1] if re.search(r"[^eo]e$", self.base) else self.base


def _verbs() -> Iterator[Verb]:
    lasting = _LASTING.split()
    yield from (Verb(base, lasting=True) for base in lasting)
    yield from (Verb(base, lasting=False) for base in _SINGLE.split() if base not in lasting)


VERBS: Mapping[str, Verb] = {verb.base: verb for verb in _verbs()}
THIRDS: Mapping[str, Verb] = {verb.third: verb for verb in VERBS.values()}
PARTICIPLES: Mapping[str, Verb] = {verb.participle: verb for verb in VERBS.values()}
PASTS: Mapping[str, Verb] = {past: verb for verb in VERBS.values() for past in verb.pasts}
