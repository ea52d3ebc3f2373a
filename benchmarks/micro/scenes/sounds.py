"""The kinds of sound that the scenes are made of, and the maker of each."""

from __future__ import annotations

from benchmarks.micro.scenes import instruments, sounds_machines, sounds_nature
from benchmarks.micro.scenes.signals import Maker

SPEECH = "speech"  # comes from a speech synthesiser, hence no maker

MAKERS: dict[str, Maker] = {
    "alarm": sounds_machines.alarm,
    "applause": sounds_nature.applause,
    "birds": sounds_nature.birds,
    "car horn": sounds_machines.car_horn,
    "church bell": sounds_machines.church_bell,
    "clock ticking": sounds_machines.clock_ticking,
    "crickets": sounds_nature.crickets,
    "dog bark": sounds_nature.dog_bark,
    "dripping water": sounds_nature.dripping_water,
    "drums": instruments.drums,
    "electrical hum": sounds_machines.electrical_hum,
    "engine": sounds_machines.engine,
    "flute": instruments.flute,
    "glass breaking": sounds_machines.glass_breaking,
    "guitar": instruments.guitar,
    "helicopter": sounds_machines.helicopter,
    "knocking": sounds_machines.knocking,
    "piano": instruments.piano,
    "rain": sounds_nature.rain,
    "sea waves": sounds_nature.sea_waves,
    "siren": sounds_machines.siren,
    "static": sounds_machines.static,
    "telephone": sounds_machines.telephone,
    "violin": instruments.violin,
    "wind": sounds_nature.wind,
}

KINDS: tuple[str, ...] = tuple(sorted([*MAKERS, SPEECH]))

# Shortest event (s) from which a listener can tell the kind; a wave needs one surge, a beat its snare.
SHORTEST_S: dict[str, float] = {
    "church bell": 1.0,
    "clock ticking": 1.2,
    "drums": 1.6,
    "engine": 0.8,
    "glass breaking": 0.7,
    "sea waves": 3.6,
    "siren": 1.2,
    "speech": 1.4,
    "wind": 1.6,
}
ALWAYS_ENOUGH_S = 0.6

# Kinds of one family mask each other beyond recognition: a scene has one of each family at most.
FAMILIES: tuple[frozenset[str], ...] = (
    frozenset({"applause", "rain", "sea waves", "static"}),
    frozenset({"electrical hum", "engine", "helicopter", "wind"}),
)


def shortest_s(kind: str) -> float:
    """Shortest recognisable length of a kind in seconds."""
    return SHORTEST_S.get(kind, ALWAYS_ENOUGH_S)
