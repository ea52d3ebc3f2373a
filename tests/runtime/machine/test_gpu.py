"""GPUs are described by the driver, and what it does not know is left out; nothing raises."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from dasheng_edge.runtime.machine import gpu
from dasheng_edge.runtime.machine.gpu import find_gpus
from tests.fixtures.fake_gpu import H200, FakeDriver, FakeNvml


def with_libraries(monkeypatch: pytest.MonkeyPatch, driver: Any = None, nvml: Any = None) -> None:
    def library(name: str) -> Any:
        found = {gpu._CUDA: driver, gpu._NVML: nvml}[name]
        if found is None:
            raise OSError(f"{name}: cannot open shared object file")
        return found

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(gpu, "_library", library)


def test_a_card_is_named_with_its_driver_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with_libraries(monkeypatch, FakeDriver("NVIDIA H200"), FakeNvml())
    found = find_gpus()
    assert (found.cards, found.problem) == ((H200,), "")
    assert str(H200) == "NVIDIA H200, 140.4 GiB, driver 580.159.04, CUDA 13.0"


def test_all_cards_are_listed_in_the_drivers_order(monkeypatch: pytest.MonkeyPatch) -> None:
    with_libraries(monkeypatch, FakeDriver("A", "B"), FakeNvml())
    assert [card.name for card in find_gpus().cards] == ["A", "B"]


@pytest.mark.parametrize("nvml", [None, FakeNvml(init=1), FakeNvml(handle=6), FakeNvml(memory=3), SimpleNamespace()])
def test_a_board_without_nvml_does_not_tell_what_is_free(monkeypatch: pytest.MonkeyPatch, nvml: Any) -> None:
    with_libraries(monkeypatch, FakeDriver("Orin"), nvml)
    (card,) = find_gpus().cards
    assert (card.name, card.memory_bytes, card.free_bytes) == ("Orin", H200.memory_bytes, None)
    assert card.driver.endswith("CUDA 13.0")


@pytest.mark.parametrize(
    ("driver", "why"),
    [
        (None, r"its driver is not installed \(\S+ is not found\)"),
        (FakeDriver(), "the driver finds none, or CUDA_VISIBLE_DEVICES hides it"),
        (FakeDriver(init=100), "the driver finds none, or CUDA_VISIBLE_DEVICES hides it"),
        (FakeDriver(init=803), "restart the machine"),
        (FakeDriver(init=999), r"'error 999 of the driver' \(code 999\)"),
        (SimpleNamespace(), "is not as expected"),
    ],
)
def test_why_there_is_none_is_one_sentence(monkeypatch: pytest.MonkeyPatch, driver: Any, why: str) -> None:
    with_libraries(monkeypatch, driver)
    found = find_gpus()
    assert found.cards == ()
    assert re.fullmatch(f"no NVIDIA GPU is visible: .*{why}.*", found.problem)


def test_a_mac_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "macOS" in find_gpus().problem


def test_this_machine_is_asked_without_an_error() -> None:
    found = find_gpus()
    assert bool(found.cards) != bool(found.problem)
