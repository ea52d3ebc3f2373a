"""Memory and energy: what is read, and what is said where nothing can be read."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.runtime import meters
from dasheng_edge.runtime.meters import EnergyMeter, peak_rss_bytes


def count(folder: Path, uj: int, package: str = "intel-rapl:0") -> None:
    (folder / package).mkdir(exist_ok=True, parents=True)
    (folder / package / "energy_uj").write_text(f"{uj}\n")


@pytest.fixture
def powercap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(meters, "_POWERCAP", tmp_path)
    return tmp_path


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="this system has no /proc")
def test_the_peak_of_memory_holds_what_was_there_at_once_and_stays() -> None:
    block = np.ones(20_000_000)
    size = block.nbytes
    peak = peak_rss_bytes()
    assert peak is not None
    assert peak > size
    del block
    later = peak_rss_bytes()
    assert later is not None
    assert later == pytest.approx(peak, abs=2e6)  # Linux counts pages in batches


def test_the_peak_of_memory_where_the_system_has_no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(meters, "_STATUS", tmp_path / "none")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(sys, "platform", "freebsd")
    assert peak_rss_bytes() == pytest.approx(peak * 1024, rel=0.1)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_rss_bytes() == pytest.approx(peak, rel=0.1)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_rss_bytes() is None


def test_a_status_without_a_peak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name: x\n")
    monkeypatch.setattr(meters, "_STATUS", tmp_path / "status")
    assert peak_rss_bytes() is None


def test_energy_is_what_all_packages_spent(powercap: Path) -> None:
    count(powercap, 1_000_000)
    count(powercap, 5_000_000, "intel-rapl:1")
    count(powercap, 7, "intel-rapl:0:0")  # a part of package 0
    meter = EnergyMeter()
    assert meter.joules() == 0.0
    count(powercap, 1_500_000)
    count(powercap, 5_250_000, "intel-rapl:1")
    count(powercap, 99_000_000, "intel-rapl:0:0")
    assert meter.joules() == 0.75
    assert not meter.problem


def test_a_counter_that_starts_again_at_zero(powercap: Path) -> None:
    count(powercap, 9_000_000)
    meter = EnergyMeter()
    count(powercap, 500_000)
    assert meter.joules() is None
    (powercap / "intel-rapl:0" / "max_energy_range_uj").write_text("10000000")
    assert meter.joules() == 1.5


def test_energy_that_cannot_be_read_is_explained(powercap: Path) -> None:
    meter = EnergyMeter()
    assert meter.joules() is None
    assert "there is no RAPL counter" in meter.problem
    (powercap / "intel-rapl:0").mkdir()
    meter = EnergyMeter()
    assert meter.joules() is None
    assert "sudo chmod a+r" in meter.problem


def test_counters_that_come_or_go_meanwhile(powercap: Path) -> None:
    count(powercap, 1)
    meter = EnergyMeter()
    count(powercap, 1, "intel-rapl:1")
    assert meter.joules() is None
    assert "have changed" in meter.problem
