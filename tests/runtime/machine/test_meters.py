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
from dasheng_edge.runtime.machine.meters import CpuUse, EnergyMeter, cpu_use, peak_rss_bytes


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


def test_what_others_have_is_neither_idle_nor_ours() -> None:
    before = CpuUse(clock_s=0, idle_s=100, own_s=5, cores=4)
    assert before.others(CpuUse(10, 104, 5 + 32, 4)) == pytest.approx(0.4)
    assert before.others_share(CpuUse(10, 104, 5 + 32, 4)) == pytest.approx(0.1)
    assert before.others_share(CpuUse(10, 100, 46, 4)) == 0.0  # ticks are coarse
    assert before.others(CpuUse(10, 120, 0.1, 4)) == pytest.approx(2.0)  # a forked child
    assert before.others(CpuUse(0, 100, 5, 4)) is None
    assert before.others_share(CpuUse(10, None, 6, 4)) is None


@pytest.mark.parametrize("rest", ["intr 5 6\n", ""])
def test_only_cores_that_this_process_may_use_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: str) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 3}, raising=False)
    stat = tmp_path / "stat"
    rows = "".join(f"cpu{cpu} 9 9 9 {10**cpu} {5 * 10**cpu} 9 9 9 0 0\n" for cpu in range(4))
    stat.write_text(f"cpu  1 2 3 4 5 6 7 8 9 10\n{rows}{rest}")
    use = cpu_use(stat)
    assert (use.cores, use.idle_s) == (2, 6060 / os.sysconf("SC_CLK_TCK"))


@pytest.mark.parametrize("content", [None, "", "cpu  1 2 3 4 5 6\n", "cpu0 1 2 3 4 5 6\n"])
def test_a_system_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 3}, raising=False)
    stat = tmp_path / "stat"
    if content is not None:
        stat.write_text(content)
    assert (cpu_use(stat).idle_s, cpu_use(stat).cores) == (None, os.cpu_count())


def test_own_work_is_not_that_of_others() -> None:
    before = cpu_use()
    done = subprocess.run([sys.executable, "-c", "sum(range(20_000_000))"], check=True)
    after = cpu_use()
    assert done.returncode == 0
    assert after.own_s - before.own_s > 0.1
    assert (before.others(after) or 0.0) >= 0
