"""Memory and energy: what is read, and what is said where nothing can be read."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dasheng_edge.runtime.machine import meters
from dasheng_edge.runtime.machine.meters import CpuUse, EnergyMeter, cpu_use, machine_s, peak_rss_bytes


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


def test_the_share_of_others(tmp_path: Path) -> None:
    before, cores = CpuUse(clock_s=0, machine_s=100, own_s=5), os.cpu_count() or 1
    assert before.others_share(CpuUse(10, 100 + 9 * cores, 5 + 8 * cores)) == pytest.approx(0.1)
    assert before.others_share(CpuUse(10, 100, 6)) == 0.0  # ticks are coarse
    assert before.others_share(CpuUse(10, None, 6)) is None
    assert machine_s(tmp_path / "none") is None
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 4000 500 6 7 8 50 60\ncpu0 1 2 3\n")
    assert machine_s(stat) == pytest.approx((100 + 20 + 30 + 6 + 7 + 8) / os.sysconf("SC_CLK_TCK"))


def test_own_work_is_not_that_of_others() -> None:
    before = cpu_use()
    done = subprocess.run([sys.executable, "-c", "sum(range(20_000_000))"], check=True)
    after = cpu_use()
    assert done.returncode == 0
    assert after.own_s - before.own_s > 0.1
    assert after.machine_s is None or before.machine_s is None or after.machine_s > before.machine_s
