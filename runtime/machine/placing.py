"""Which parts of a bundle go on a GPU: what they take of its memory against what is free there, before they load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .devices import ON_CPU, Placement
from .gpu import Gpus

# What a process takes of a card beside what is counted: CUDA, the kernels of both engines, workspaces of their matrix
# products, holes between blocks. CUDA takes more of larger cards. With a 7B on an H200, NVML said 2.1 to 2.2 GB more
# than is counted, in which is what the driver keeps for itself, probably 0.6 GB; no smaller card was measured.
CUDA_BYTES, CARDS_SHARE = 512 << 20, 150
ALL, DECODER, ENCODER = Placement("cuda", "cuda"), Placement("cpu", "cuda"), Placement("cuda", "cpu")
# The decoder before the encoder: of the 6.2 s that a caption of ten seconds and 40 tokens takes a 7B on two cores, 5
# are the decoder's, of the 0.7 s of a 0.6B 0.55.
_NAMES: Mapping[Placement, str] = {ALL: "all parts", DECODER: "the decoder alone", ENCODER: "the encoder alone"}


@dataclass(frozen=True)
class Needs:
    """What the parts of a bundle take of a card's memory, in bytes."""

    encoder: int  # weights of encoder and projector
    heard: int  # what they compute in their largest run
    decoder: int  # weights
    decoded: int  # what it computes in its largest run
    answer: int  # keys and values of an answer, and its logits
    positions: int  # of an answer
    cuda: int = CUDA_BYTES

    def on(self, card: Card) -> Needs:
        """The same on this card."""
        return replace(self, cuda=CUDA_BYTES + card.memory_bytes // CARDS_SHARE)

    def of(self, place: Placement) -> Mapping[str, int]:
        """What a placement takes, by what it is for; nothing on the CPU."""
        parts = {"encoder and projector": self.encoder, "their values": self.heard} if place.encoder == "cuda" else {}
        if place.decoder == "cuda":
            parts |= {"decoder": self.decoder, "its values": self.decoded}
            parts |= {f"an answer of {self.positions} positions": self.answer}
        parts = {what: size for what, size in parts.items() if size}
        return parts | {"CUDA": self.cuda} if parts else {}

    def total(self, place: Placement) -> int:
        """Of a placement."""
        return sum(self.of(place).values())


@dataclass(frozen=True)
class Card:
    """The GPU that all parts use, the first that CUDA shows to this process, and what is free on it."""

    name: str
    free_bytes: int | None  # None: the driver does not tell, so that all is tried
    memory_bytes: int = 0

    @classmethod
    def first(cls, gpus: Gpus) -> Card | None:
        """Engines count as CUDA does: in the order of CUDA_VISIBLE_DEVICES, where that is set."""
        if not gpus.cards:
            return None
        card, others = gpus.cards[0], len(gpus.cards) - 1
        beside = f" (the first of {others + 1}; CUDA_VISIBLE_DEVICES chooses)" if others else ""
        return cls(f"{card.name}{beside}", card.free_bytes, card.memory_bytes)

    def holds(self, needed: int) -> bool:
        """Whether so much fits."""
        return self.free_bytes is None or needed <= self.free_bytes

    def answers(self, needs: Needs, place: Placement) -> int | None:
        """How many answers at once have room beside the parts; None where nobody knows."""
        if self.free_bytes is None or place.decoder == "cpu":
            return None
        return 1 + max(0, self.free_bytes - needs.on(self).total(place)) // needs.answer


def described(needs: Needs, place: Placement) -> str:
    """The numbers, as in "16,300 MB (decoder 14,140, ...)"."""
    return f"{_mb(needs.total(place))} MB ({_parts(needs, place)})"


def _parts(needs: Needs, place: Placement) -> str:
    return ", ".join(f"{what} {_mb(size)}" for what, size in needs.of(place).items())


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f}"


def refusal(needs: Needs, place: Placement, card: Card) -> str | None:
    """Why a placement that was asked for does not fit, and what does; None if it does."""
    needs = needs.on(card)
    if card.free_bytes is None or card.holds(needs.total(place)):
        return None
    fits = [one for one in (DECODER, ENCODER) if place == ALL and card.holds(needs.total(one))]
    leave = f"leave a part to the CPU (--device {fits[0]})" if fits else "take --device cpu"
    return (
        f"{_mb(needs.total(place))} MB of the GPU's memory, {_mb(card.free_bytes)} MB are free on {card.name} "
        f"({_parts(needs, place)}): quantize to a smaller recipe, or {leave}"
    )


def placed(needs: Needs, card: Card, can: Placement, why_not: str) -> tuple[Placement, str]:
    """Where the parts are best, and why in a sentence; `can` is where engines compute, and `why_not` why not on it."""
    needs, wishes = needs.on(card), [one for one in (ALL, DECODER, ENCODER) if one.within(can)]
    for wish in wishes:
        if card.holds(needs.total(wish)):
            free = "" if card.free_bytes is None else f", {_mb(card.free_bytes)} MB are free"
            first = wishes[0]
            more = "" if wish == first else f"{_NAMES[first]} would need {_mb(needs.total(first))} MB"
            because = "; ".join(filter(None, (more, why_not)))
            what = f"{_NAMES[wish]} need{'' if wish == ALL else 's'} about {_mb(needs.total(wish))} MB"
            return wish, f"{what}{free} on {card.name}{because and f'; {because}'}"
    if not wishes:
        return ON_CPU, why_not
    least = min(wishes, key=needs.total)
    free = f"{_mb(card.free_bytes or 0)} MB are free on {card.name}"
    return ON_CPU, f"{_NAMES[least]} would need {described(needs, least)}, {free}"
