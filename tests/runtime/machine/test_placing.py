"""Where the parts of a bundle are best, and what is refused: laws over sizes of parts and free memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.runtime.machine.devices import ON_CPU, Placement
from dasheng_edge.runtime.machine.gpu import Gpus
from dasheng_edge.runtime.machine.placing import (
    ALL,
    CARDS_SHARE,
    CUDA_BYTES,
    DECODER,
    ENCODER,
    Card,
    Needs,
    placed,
    refusal,
)
from tests.fixtures.fake_gpu import H200

SEVEN_B = Needs(1_258_000_000, 189_000_000, 14_140_000_000, 165_000_000, 30_000_000, 512)
GAIN = (ALL, DECODER, ENCODER, ON_CPU)  # the best first
SIZES = st.integers(1, 1 << 36)
NEEDS = st.builds(Needs, SIZES, SIZES, SIZES, SIZES, SIZES, st.just(512))
PLACES = st.sampled_from(GAIN)


@given(NEEDS, SIZES, PLACES)
def test_the_best_that_fits_is_chosen(needs: Needs, free: int, can: Placement) -> None:
    card = Card("X", free)
    place, _ = placed(needs, card, can, "" if can == ALL else "an engine lacks it")
    assert place.within(can)
    assert place == ON_CPU or needs.total(place) <= free
    for better in GAIN[: GAIN.index(place)]:
        assert needs.total(better) > free or not better.within(can)


@given(NEEDS, SIZES, PLACES)
def test_what_auto_takes_is_not_refused_and_what_is_refused_does_not_fit(
    needs: Needs, free: int, place: Placement
) -> None:
    card = Card("X", free)
    assert refusal(needs, placed(needs, card, ALL, "")[0], card) is None
    why = refusal(needs, place, card)
    assert (why is not None) == (needs.total(place) > free)
    for option in (DECODER, ENCODER):
        if why and str(option) in why:
            assert refusal(needs, option, card) is None


@given(NEEDS, PLACES)
def test_the_numbers_add_up(needs: Needs, place: Placement) -> None:
    whole, nothing = needs.total(place), needs.total(ON_CPU)
    assert nothing == 0
    assert whole == sum(needs.of(place).values())
    assert needs.total(ALL) == needs.total(DECODER) + needs.total(ENCODER) - CUDA_BYTES


@given(NEEDS, SIZES)
def test_cuda_takes_more_of_a_larger_card(needs: Needs, memory: int) -> None:
    card = Card("X", None, memory)
    assert needs.on(card).total(ALL) == needs.total(ALL) + memory // CARDS_SHARE
    assert needs.on(card).total(ON_CPU) == 0


def test_what_is_free_decides_and_is_said() -> None:
    said = {free: placed(SEVEN_B, Card("NVIDIA X", free * 10**9), ALL, "") for free in (24, 16, 8, 1)}
    assert [str(place) for place, _ in said.values()] == [
        "cuda",
        "encoder=cpu,decoder=cuda",
        "encoder=cuda,decoder=cpu",
        "cpu",
    ]
    assert said[24][1] == "all parts need about 16,319 MB, 24,000 MB are free on NVIDIA X"
    assert said[16][1] == (
        "the decoder alone needs about 14,872 MB, 16,000 MB are free on NVIDIA X; all parts would need 16,319 MB"
    )
    assert said[1][1].startswith(
        "the encoder alone would need 1,984 MB (encoder and projector 1,258, their values 189,"
    )
    why = refusal(SEVEN_B, ALL, Card("NVIDIA X", 16 * 10**9))
    assert why
    assert "decoder 14,140, its values 165, an answer of 512 positions 30, CUDA 537" in why
    assert "--device encoder=cpu,decoder=cuda" in why


def test_a_card_that_does_not_tell_what_is_free_is_tried() -> None:
    card = Card("Orin", None)
    assert placed(SEVEN_B, card, ALL, "") == (ALL, "all parts need about 16,319 MB on Orin")
    assert refusal(SEVEN_B, ALL, card) is None
    assert card.answers(SEVEN_B, ALL) is None


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_first_card_that_cuda_shows_is_the_one(count: int) -> None:
    cards = tuple(replace(H200, name=name, free_bytes=free) for name, free in (("A", 1), ("B", 2), ("C", 3))[:count])
    card = Card.first(Gpus(cards, "" if cards else "none"))
    assert (card is None) == (not count)
    if card:
        assert card.free_bytes == 1
        assert card.name == ("A" if count == 1 else "A (the first of 3; CUDA_VISIBLE_DEVICES chooses)")


@given(NEEDS, SIZES)
def test_answers_that_are_said_to_fit_do(needs: Needs, free: int) -> None:
    card = Card("X", free)
    count = card.answers(needs, ALL)
    assert count is not None
    assert count >= 1
    if count > 1:
        assert needs.total(ALL) + (count - 1) * needs.answer <= free < needs.total(ALL) + count * needs.answer
    assert card.answers(needs, ENCODER) is None
