"""The kinds of sound: how each is made, which recordings are trained on or held out, and how English names it.

What is held out is another recording by somebody else than all that is trained on: kinds are judged by source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from benchmarks.micro.scenes import captions as micro
from benchmarks.micro.scenes.signals import Maker
from benchmarks.micro.scenes.sounds import MAKERS as SYNTHESISED
from benchmarks.micro.scenes.sounds import SHORTEST_S, SPEECH
from benchmarks.small.scenes import new_sounds
from benchmarks.small.scenes.notes import beaten, played, struck
from benchmarks.small.scenes.recordings import Recorded

Phrase = tuple[str, str, str]  # subject, finite verb, participle


@dataclass(frozen=True)
class Kind:
    """`makers`: each as likely as the others; `stem`: expression of the words that name the kind."""

    name: str
    makers: tuple[Maker, ...]
    held_out: tuple[Recorded, ...]
    phrases: tuple[Phrase, ...]
    stem: str
    shortest_s: float = 0.7


def gcompris(name: str) -> Recorded:
    """Sounds of gcompris-qt-data."""
    return Recorded("gcompris-qt-data", f"**/{name}")


def sonic(name: str) -> Recorded:
    """Sounds of sonic-pi-samples."""
    return Recorded("sonic-pi-samples", f"**/{name}.flac")


def tux(name: str) -> Recorded:
    """Sounds of tuxpaint-stamps-default."""
    return Recorded("tuxpaint-stamps-default", f"**/{name}.ogg")


def voices(language: str) -> Recorded:
    """One voice that reads a telephone system's sentences."""
    return Recorded(f"asterisk-core-sounds-{language}-wav", "asterisk/sounds/*/*.wav")


def instrument(soundfont: str, patch: str, note_s: tuple[float, float] = (0.25, 0.7)) -> tuple[Maker, ...]:
    """Melodies of recorded notes: of one maker's SoundFont, and of others' patches."""
    makers = [partial(played, name=soundfont, note_s=note_s)] if soundfont else []
    return (*makers, partial(played, name=f"{patch}.pat", note_s=note_s))


def _plays(*names: str) -> tuple[Phrase, ...]:
    said = (("plays", "playing"), ("plays a melody", "playing a melody"), ("is playing", "playing softly"))
    return tuple((name, finite, ing) for name in names for finite, ing in said)


# What micro synthesises, with recordings beside: (trained on, held out, more phrases).
_MORE: dict[str, tuple[tuple[Maker, ...], tuple[Recorded, ...], tuple[Phrase, ...]]] = {
    "alarm": ((), (), (("an alarm", "sounds", "sounding"),)),
    "applause": (
        (partial(played, name="Applause", note_s=(2.0, 4.0)),), (gcompris("LRApplauses*"),),
        (("a crowd", "applauds", "applauding"), ("an audience", "breaks into applause", "applauding loudly")),
    ),
    "birds": (
        (tux("blackbird"), tux("cuckoo"), partial(struck, name="Bird - Sparrow", period_s=(0.2, 0.6))), (tux("lark"),),
        (("a bird", "sings", "singing"), ("a bird", "chirps", "chirping"), ("small birds", "tweet", "tweeting")),
    ),
    "car horn": ((), (), (("a car horn", "blares", "blaring"),)),
    "church bell": ((partial(struck, name="TubeBell", period_s=(0.9, 1.8)),), (), (("a bell", "rings", "ringing"),)),
    "crickets": ((), (tux("grasshopper"),), (("a cricket", "chirps", "chirping"),)),
    "dog bark": (
        (tux("dog"), gcompris("LRBark_*")), (gcompris("animals/dog.ogg"),),
        (("a dog", "barks repeatedly", "barking repeatedly"), ("a dog", "barks loudly", "barking")),
    ),
    "drums": (
        (
            partial(beaten, kick="Bass Drum New", snare="Snare 1", hat="High Hat Closed"),
            partial(beaten, kick="035_Kick_1.pat", snare="038_Snare_1.pat", hat="042_Hi-Hat_Closed.pat"),
            partial(beaten, kick="036_Kick_2.pat", snare="040_Snare_2.pat", hat="046_Hi-Hat_Open.pat"),
            sonic("loop_amen"), sonic("loop_mehackit1"),
        ),
        (gcompris("drum_kit.ogg"), tux("drumkit"), sonic("loop_breakbeat")),
        (
            ("a drummer", "plays the drums", "playing the drums"),
            ("drums", "play a steady beat", "playing a steady beat"),
        ),
    ),
    "engine": (
        (gcompris("LRStartAndStopCarEngine*"),), (gcompris("traffic/**/car.wav"),),
        (("a car engine", "idles", "idling"),),
    ),
    "flute": (instrument("Flute", "073_Flute"), (gcompris("flute_traversiere.ogg"),), _plays("a flute")),
    "guitar": (
        (*instrument("Steel AcGtr", "025_Steel_Guitar"), *instrument("N Guitar", "024_Nylon_Guitar"), sonic("guit_e*")),
        (gcompris("instruments/**/guitar.ogg"), gcompris("guitar_melody.ogg"), sonic("guit_harmonics")),
        (*_plays("a guitar", "an acoustic guitar"),),
    ),
    "helicopter": (
        instrument("Helicopter", "125_Helicopter", (2.0, 4.0)),
        (gcompris("helicopter.wav"),), (("a helicopter", "passes overhead", "passing overhead"),),
    ),
    "knocking": (
        (partial(struck, name="Wood Block", period_s=(0.15, 0.4)),), (gcompris("knock.wav"),),
        (("someone", "knocks on a door", "knocking on a door"),),
    ),
    "piano": (
        (*instrument("Piano", "000_Acoustic_Grand_Piano"), *instrument("", "001_Acoustic_Brite_Piano")),
        (gcompris("instruments/**/piano.ogg"), sonic("ambi_piano")), _plays("a piano"),
    ),
    "rain": (
        (), (gcompris("LRRain_in_garden*"),),
        (("heavy rain", "falls", "falling"), ("rain", "patters", "pattering")),
    ),
    "sea waves": (
        instrument("Ocean", "122_Seashore", (2.5, 4.0)), (),
        (("waves", "crash on the shore", "crashing on the shore"), ("ocean waves", "roll in", "rolling in")),
    ),
    "siren": ((tux("firetruck"),), (), (("an emergency siren", "wails", "wailing"),)),
    "static": ((sonic("vinyl_hiss"),), (), (("radio static", "hisses", "hissing"),)),
    "telephone": (
        (partial(struck, name="Telephone", period_s=(0.1, 0.2)),), (), (("a phone", "rings", "ringing"),),
    ),
    "violin": (
        instrument("Violin", "040_Violin"), (gcompris("violin.ogg"), tux("violin")), _plays("a violin"),
    ),
    "wind": ((), (), (("a strong wind", "blows", "blowing"),)),
}  # fmt: skip

_NEW: tuple[Kind, ...] = (
    Kind(
        "accordion",
        instrument("Accordion", "021_Accordion"),
        (gcompris("accordion.ogg"),),
        _plays("an accordion"),
        r"accordions?",
    ),
    Kind(
        "cat",
        (new_sounds.cat, tux("blackcat")),
        (gcompris("animals/cat.ogg"),),
        (("a cat", "meows", "meowing"), ("a cat", "is meowing", "meowing loudly")),
        r"cats?|meow\w*",
    ),
    Kind(
        "cello",
        instrument("Arco Cello", "042_Cello"),
        (gcompris("cello.ogg"), tux("cello")),
        _plays("a cello"),
        r"cellos?",
    ),
    Kind(
        "chicken",
        (new_sounds.chicken, tux("hen"), tux("rooster")),
        (gcompris("chickens.ogg"),),
        (("chickens", "cluck", "clucking"), ("a hen", "clucks", "clucking")),
        r"chickens?|hens?|roosters?|cluck\w*",
    ),
    Kind(
        "clarinet",
        instrument("Bb ff Clar", "071_Clarinet"),
        (gcompris("clarinet.ogg"),),
        _plays("a clarinet"),
        r"clarinets?",
    ),
    Kind(
        "cow",
        (new_sounds.cow, tux("cow*"), tux("bull")),
        (gcompris("animals/cow.ogg"),),
        (("a cow", "moos", "mooing"), ("a cow", "is mooing", "mooing loudly")),
        r"cows?|moo\w*",
        1.0,
    ),
    Kind(
        "crow",
        (new_sounds.crow, tux("crow")),
        (sonic("misc_crow"),),
        (("a crow", "caws", "cawing"), ("crows", "caw", "cawing")),
        r"crows?|caw\w*",
    ),
    Kind(
        "cymbal",
        (
            new_sounds.cymbal,
            partial(struck, name="Med Crash Cymbal", period_s=(0.8, 2.0)),
            partial(struck, name="049_Cymbal_Crash_1.pat", period_s=(0.8, 2.0)),
            partial(struck, name="057_Cymbal_Crash_2.pat", period_s=(0.8, 2.0)),
            sonic("drum_cymbal_hard"),
        ),
        (gcompris("cymbal.ogg"), tux("cymbal_crash"), sonic("drum_splash_hard")),
        (("a cymbal", "crashes", "crashing"), ("someone", "hits a cymbal", "hitting a cymbal")),
        r"cymbals?",
        0.8,
    ),
    Kind(
        "duck",
        (new_sounds.duck, tux("duck"), tux("drake")),
        (gcompris("animals/duck.ogg"),),
        (("a duck", "quacks", "quacking"), ("ducks", "quack", "quacking")),
        r"ducks?|quack\w*",
    ),
    Kind("elephant", (tux("elephant"),), (), (("an elephant", "bellows", "bellowing"),), r"elephants?", 1.0),
    Kind(
        "fire",
        (new_sounds.fire,),
        (),
        (("a fire", "crackles", "crackling"), ("a campfire", "burns", "crackling")),
        r"fire|campfire",
        1.0,
    ),
    Kind(
        "fireworks",
        (tux("fireworks"),),
        (),
        (("fireworks", "explode", "exploding"), ("fireworks", "go off", "going off")),
        r"fireworks",
        1.0,
    ),
    Kind(
        "footsteps",
        (new_sounds.footsteps,),
        (gcompris("icy_walk.wav"),),
        (("someone", "walks", "walking"), ("footsteps", "approach", "approaching")),
        r"footsteps?|walk\w*",
        1.2,
    ),
    Kind(
        "frog",
        (new_sounds.frog, tux("frog")),
        (gcompris("LRFrogs*"),),
        (("frogs", "croak", "croaking"), ("a frog", "croaks", "croaking")),
        r"frogs?|croak\w*",
    ),
    Kind("hammer", (tux("hammer"),), (), (("someone", "hammers", "hammering"),), r"hammer\w*", 0.9),
    Kind("harp", instrument("Harp", "046_Harp"), (gcompris("harp.ogg"),), _plays("a harp"), r"harps?"),
    Kind(
        "horse",
        (new_sounds.horse, tux("horse")),
        (gcompris("animals/horse.ogg"),),
        (("a horse", "neighs", "neighing"), ("a horse", "whinnies", "whinnying")),
        r"horses?|neigh\w*|whinn\w*",
        1.0,
    ),
    Kind(
        "insect",
        (new_sounds.insect, tux("bee"), tux("hornet")),
        (tux("mosquito"),),
        (("a bee", "buzzes", "buzzing"), ("an insect", "buzzes", "buzzing around")),
        r"bees?|insects?|buzz\w*",
        0.8,
    ),
    Kind(
        "lion",
        (tux("lion"), tux("tiger")),
        (),
        (("a lion", "roars", "roaring"), ("a big cat", "growls", "growling")),
        r"lions?|big cat",
        1.0,
    ),
    Kind("monkey", (tux("chimp"),), (), (("a monkey", "screeches", "screeching"),), r"monkeys?", 0.9),
    Kind(
        "organ",
        (*instrument("Church Org", "019_Church_Organ"), *instrument("DrawBar Organ", "016_Hammond_Organ")),
        (gcompris("organ.ogg"),),
        _plays("an organ"),
        r"organs?",
    ),
    Kind(
        "owl",
        (new_sounds.owl, tux("owl")),
        (gcompris("animals/owl.ogg"),),
        (("an owl", "hoots", "hooting"),),
        r"owls?|hoot\w*",
        0.8,
    ),
    Kind(
        "pig",
        (new_sounds.pig, tux("pig"), tux("pig_golden*")),
        (gcompris("animals/pig.ogg"),),
        (("a pig", "grunts", "grunting"), ("a pig", "oinks", "oinking")),
        r"pigs?|oink\w*|grunt\w*",
    ),
    Kind(
        "running water",
        (new_sounds.running_water, gcompris("water_fill.wav")),
        (gcompris("sounds/water.wav"), tux("toilet")),
        (("water", "flows", "flowing"), ("water", "runs", "running"), ("a stream", "flows", "flowing")),
        r"water (?:is )?(?:flow|run)\w*|running water|stream",
        0.9,
    ),
    Kind("saw", (tux("saw"),), (), (("someone", "saws wood", "sawing wood"),), r"saws?|sawing", 0.9),
    Kind(
        "saxophone",
        (*instrument("Alto", "065_Alto_Sax"), *instrument("Tenor", "066_Tenor_Sax")),
        (gcompris("saxophone.ogg"),),
        _plays("a saxophone"),
        r"saxophones?",
    ),
    Kind(
        "seagull",
        (tux("seagull"),),
        (),
        (("a seagull", "cries", "crying"), ("seagulls", "cry", "crying")),
        r"seagulls?",
    ),
    Kind(
        "sheep",
        (new_sounds.sheep, tux("sheep"), tux("sheep_lamb"), tux("ram")),
        (gcompris("animals/sheep.ogg"),),
        (("a sheep", "bleats", "bleating"), ("sheep", "bleat", "bleating")),
        r"sheep|bleat\w*",
    ),
    Kind(
        "thunder",
        (new_sounds.thunder, tux("lightningbolt")),
        (),
        (("thunder", "rumbles", "rumbling"), ("thunder", "rolls", "rolling")),
        r"thunder\w*",
        1.2,
    ),
    Kind(
        "train",
        (new_sounds.train, gcompris("LRTrain*")),
        (gcompris("railroad/**/train.wav"),),
        (("a train", "passes", "passing"), ("a train", "rolls by", "rolling by")),
        r"trains?",
        1.2,
    ),
    Kind("trumpet", instrument("Trump", "056_Trumpet"), (gcompris("trumpet.ogg"),), _plays("a trumpet"), r"trumpets?"),
    Kind(
        "vacuum cleaner",
        (tux("vacuum_cleaner"),),
        (),
        (("a vacuum cleaner", "runs", "running"), ("a vacuum cleaner", "whirs", "whirring")),
        r"vacuum",
        0.8,
    ),
)


def _known() -> dict[str, Kind]:
    out = {kind.name: kind for kind in _NEW}
    for name, maker in SYNTHESISED.items():
        makers, held_out, phrases = _MORE.get(name, ((), (), ()))
        said = (*micro.PHRASES[name], *phrases)
        stem = f"{micro.STEMS[name]}|phones?" if name == "telephone" else micro.STEMS[name]
        out[name] = Kind(name, (maker, *makers), held_out, said, stem, SHORTEST_S.get(name, 0.7))
    out[SPEECH] = Kind(
        SPEECH, (), (voices("ru"),), (), r"speech|speak\w*|talk\w*|says?|saying", 1.2
    )  # has its own module
    return dict(sorted(out.items()))


KINDS: dict[str, Kind] = _known()
SPEAKERS = {"English": voices("en"), "French": voices("fr")}  # real ones, beside espeak-ng's

# Words of one kind in the phrases of another: "a car horn sounds", "a vacuum cleaner hums", "a church bell".
_PATTERNS = {name: re.compile(rf"\b(?:{kind.stem})\b", re.IGNORECASE) for name, kind in KINDS.items()}
_HIDDEN = re.compile(r"big cat", re.IGNORECASE)


def named_kinds(text: str) -> frozenset[str]:
    """The kinds of sound that an answer names; unknown words are ignored."""
    found = {name for name, pattern in _PATTERNS.items() if pattern.search(text)}
    if "cat" in found and not _PATTERNS["cat"].search(_HIDDEN.sub("", text)):
        found.discard("cat")
    return frozenset(found)
