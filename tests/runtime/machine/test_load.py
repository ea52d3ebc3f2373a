"""Measurements wait for other programs, for a while, and know what those took."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dasheng_edge.runtime.machine import load
from dasheng_edge.runtime.machine.load import BUSY, LOOK_S, Load, busy, wait_for_calm
from dasheng_edge.runtime.machine.meters import CpuUse

CORES = 4


class Machine:
    """Time passes by sleeping, and others take a share of the machine that depends on it."""

    def __init__(self, share: Callable[[float], float]) -> None:
        self.now_s = self.idle_s = 0.0
        self.share = share

    def sleep(self, seconds: float) -> None:
        self.idle_s += seconds * CORES * (1 - self.share(self.now_s))
        self.now_s += seconds

    def look(self) -> CpuUse:
        return CpuUse(self.now_s, self.idle_s, 0.0, CORES)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(lambda _: 0.0)
    monkeypatch.setattr(load, "cpu_use", machine.look)
    monkeypatch.setattr("time.sleep", machine.sleep)
    monkeypatch.setattr("time.monotonic", lambda: machine.now_s)
    return machine


def test_what_others_took_since_it_was_made(machine: Machine) -> None:
    meter = Load()
    machine.share = lambda now_s: 0.25 if now_s < 1 else 0.0
    machine.sleep(0.5)
    machine.sleep(0.5)
    assert meter.share() == pytest.approx(0.25)
    machine.sleep(1.0)
    assert meter.share() == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("shares", "spoils"), [((), False), ((None,), False), ((BUSY, None), False), ((0.0, BUSY + 0.01), True)]
)
def test_what_spoils_a_measurement(shares: tuple[float | None, ...], spoils: bool) -> None:
    assert busy(*shares) is spoils


@pytest.mark.parametrize(("ends_s", "waited_s"), [(0.0, LOOK_S), (3.0, 3.0 + LOOK_S), (1e9, 10.0)])
def test_it_waits_until_they_end_or_for_a_while(machine: Machine, ends_s: float, waited_s: float) -> None:
    said = list[str]()
    machine.share = lambda now_s: 0.6 if now_s < ends_s else 0.01
    share = wait_for_calm(said.append, 10.0)
    assert machine.now_s == pytest.approx(waited_s)
    assert share == pytest.approx(0.6 if ends_s > 10 else 0.01)
    assert said == (["other programs use 60% of the machine: waiting up to 10 s for them to end"] if ends_s else [])


def test_where_the_system_does_not_tell_it_does_not_wait(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "cpu_use", lambda: CpuUse(0.0, None, 0.0, CORES))
    assert wait_for_calm(print) is None
    assert machine.now_s == 0.0
    assert Load().share() is None
