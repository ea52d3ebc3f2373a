"""The number of threads follows what other programs leave, within limits, and without going to and fro."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasheng_edge.runtime.machine.governor import CALM_S, DOWN, MAX_WINDOW_S, UP, WINDOW_S, FreeCores, Governor
from dasheng_edge.runtime.machine.meters import CpuUse

NOISE = (DOWN + UP - 1) / 2  # of a look, within which it must not go to and fro
CORES = st.integers(1, 64)
WINDOWS = st.floats(WINDOW_S, 2.0)


def shared(cores: int, threads: int, loops: int) -> float:
    """What busy loops get of the cores beside so many threads of ours, where all get the same."""
    return float(loops) if threads + loops <= cores else cores * loops / (threads + loops)


@given(CORES, st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1000))))
def test_whatever_is_seen_it_is_a_number_of_cores(cores: int, seen: list[tuple[float, float]]) -> None:
    policy = FreeCores(cores)
    for others, seconds in seen:
        assert 1 <= policy.saw(others, seconds) == policy.free <= cores


@given(CORES, st.integers(0, 80), st.lists(st.floats(-NOISE * 0.99, NOISE * 0.99), min_size=40, max_size=40), WINDOWS)
def test_under_a_constant_load_it_settles(cores: int, loops: int, noise: list[float], window_s: float) -> None:
    policy = FreeCores(cores)
    went = [policy.saw(max(0.0, shared(cores, policy.free, loops) + wrong), window_s) for wrong in noise]
    left = max(1, cores - loops)
    assert went == sorted(went, reverse=True)  # it never goes up again
    assert left <= policy.free <= max(left + 1, 1.12 * cores - loops)
    if 2 * loops <= cores:
        assert policy.free == left


@given(CORES, st.floats(0, 80), st.lists(st.floats(-NOISE * 0.99, NOISE * 0.99), min_size=40, max_size=40), WINDOWS)
def test_a_part_of_a_core_does_not_move_it_to_and_fro(
    cores: int, others: float, noise: list[float], window_s: float
) -> None:
    policy = FreeCores(cores)
    went = [cores, *(policy.saw(max(0.0, others + wrong), window_s) for wrong in noise)]
    turns = sum(before != after for before, after in itertools.pairwise(went))
    assert turns <= 2  # down, and once more where the first look was below what is true


@given(CORES, st.lists(st.floats(0, 100), max_size=30), WINDOWS)
def test_once_the_load_is_gone_all_cores_are_back(cores: int, before: list[float], window_s: float) -> None:
    policy = FreeCores(cores)
    for others in before:
        policy.saw(others, window_s)
    passed = 0.0
    while passed < 2 * CALM_S + window_s:  # calm may have begun, with less than all free
        policy.saw(0.0, window_s)
        passed += window_s
    assert policy.free == cores


def test_it_goes_down_at_once_and_up_with_hesitation() -> None:
    policy = FreeCores(8)
    assert policy.saw(2.0, WINDOW_S) == 6
    assert policy.saw(0.0, CALM_S / 2) == 6
    assert policy.saw(1.9, WINDOW_S) == 6  # which begins the calm anew
    assert policy.saw(0.0, CALM_S / 2) == 6
    assert policy.saw(1.0, CALM_S / 2) == 7


class Machine:
    """Others keep so many of its cores busy, and this process `own`."""

    def __init__(self, cores: int, *, tells: bool = True) -> None:
        self.cores, self.others, self.own, self.looks, self.tells = cores, 0.0, 0.0, 0, tells
        self.now_s = self._idle_s = self._own_s = 0.0

    def passes(self, seconds: float) -> None:
        self.now_s += seconds
        self._idle_s += seconds * (self.cores - self.others - self.own)
        self._own_s += seconds * self.own

    def look(self) -> CpuUse:
        self.looks += 1
        return CpuUse(self.now_s, self._idle_s if self.tells else None, self._own_s, self.cores)

    def governor(self) -> Governor:
        return Governor(self.look, lambda: self.now_s)

    def after(self, governor: Governor, *limits: int, seconds: float = MAX_WINDOW_S) -> tuple[int, ...]:
        """The threads that it allows when so much time has passed."""
        self.passes(seconds)
        return governor.threads(*limits)


@given(st.integers(1, 64), st.integers(1, 64), st.floats(0, 64), st.floats(0, 64))
def test_never_more_threads_than_are_set(decode: int, prefill: int, others: float, own: float) -> None:
    machine = Machine(16)
    governor = machine.governor()
    machine.others, machine.own = others, own
    for _ in range(3):
        threads = machine.after(governor, decode, prefill)
        assert all(1 <= got <= limit for got, limit in zip(threads, (decode, prefill), strict=True))


def test_own_work_takes_no_cores_and_that_of_others_does() -> None:
    machine = Machine(8)
    governor = machine.governor()
    machine.own = 8.0
    assert machine.after(governor, 8, 4) == (8, 4)
    machine.own, machine.others = 6.0, 2.0
    assert machine.after(governor, 8, 4) == (6, 4)
    machine.own = 0.0  # nothing is asked meanwhile, and the others go on
    assert machine.after(governor, 8) == (6,)
    machine.others = 0.0
    assert machine.after(governor, 8) == (8,)


def test_what_was_long_ago_says_nothing_about_now() -> None:
    machine = Machine(8)
    governor = machine.governor()
    machine.others = 6.0
    assert machine.after(governor, 8, seconds=MAX_WINDOW_S * 2) == (8,)
    with governor.beside(1):
        assert machine.after(governor, 8, seconds=MAX_WINDOW_S) == (1,)
    assert governor.threads(8) == (2,)
    machine.others = 0.0
    machine.passes(3600)
    with governor.beside(2):  # a request begins: the hour before is forgotten, and what comes is looked at
        machine.others = 5.0
        machine.passes(0.5)
    assert governor.threads(8) == (3,)
    machine.others = 0.0
    assert machine.after(governor, 8, seconds=0.5) == (8,)


def test_the_end_of_a_request_does_not_make_the_pause_behind_it_count() -> None:
    machine = Machine(2)
    governor = machine.governor()
    machine.own = 2.0
    machine.passes(WINDOW_S * 0.9)  # after its last look
    machine.own, machine.others = 0.0, 2.0
    assert machine.after(governor, 2, seconds=1.0) == (2,)


def test_a_step_may_take_long() -> None:
    machine = Machine(8)
    governor = machine.governor()
    machine.others, machine.own = 4.0, 4.0
    assert machine.after(governor, 8, seconds=20.0) == (4,)


@pytest.mark.parametrize(("seconds", "threads"), [(WINDOW_S / 2, 8), (0.5, 2), (60.0, 2)])
def test_what_others_take_while_it_is_opened_counts(seconds: float, threads: int) -> None:
    machine = Machine(8)
    governor = machine.governor()
    machine.passes(3600)
    with governor.opening():
        machine.others = 6.0
        machine.passes(seconds)
    assert governor.threads(8) == (threads,)


def test_what_this_process_computes_beside_takes_cores_too() -> None:
    governor = Machine(4).governor()
    with governor.beside(1):
        with governor.beside(2):
            assert governor.threads(4, 1) == (1, 1)
        assert governor.threads(4) == (3,)
    with governor.beside(9):
        assert governor.threads(4) == (1,)
    assert governor.threads(4) == (4,)


def test_a_process_that_moves_to_other_cores_starts_anew() -> None:
    machine = Machine(8)
    governor = machine.governor()
    machine.others = 6.0
    assert machine.after(governor, 8) == (2,)
    machine.cores, machine.others = 4, 0.0
    assert machine.after(governor, 8) == (4,)


def test_it_looks_no_more_often_than_it_can_tell() -> None:
    machine = Machine(8)
    governor = machine.governor()
    machine.others = 8.0
    assert machine.after(governor, 8, seconds=WINDOW_S / 2) == (8,)
    assert machine.looks == 1


def test_where_the_system_does_not_tell_all_threads_compute() -> None:
    machine = Machine(2, tells=False)
    machine.others = 2.0
    assert machine.after(machine.governor(), 2) == (2,)
