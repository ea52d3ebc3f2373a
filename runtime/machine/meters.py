"""What this process and this machine have spent: memory, time of CPUs, and energy where the processor counts it."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")  # Linux counts there what RAPL measures, on AMD too
_STATUS = Path("/proc/self/status")
_STAT = Path("/proc/stat")
_IDLE = (3, 4)  # fields of a core's line in /proc/stat that are no work: idle, iowait


def peak_rss_bytes() -> int | None:
    """The most memory that was resident in this process at once, files that are mapped included; None where unknown."""
    try:
        peak = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())
    except OSError:
        return _peak_by_getrusage()
    return int(peak[1]) * 1024 if peak else None


def _peak_by_getrusage() -> int | None:
    """Where there is no /proc. Not on Linux, where a program starts with the peak of the one that started it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class EnergyMeter:
    """Energy of all processor packages since it was made, whoever made them work; memory and GPUs are not in it."""

    def __init__(self) -> None:
        self.problem = ""  # why it cannot be told; "" where it can
        self._start = self._read()

    def joules(self) -> float | None:
        """Since the start; None where it cannot be told, which `problem` explains.

        A counter that has started again at 0 meanwhile is taken to have done so once, which takes an hour at 70 W.
        """
        now = self._read()
        if self.problem or now.keys() != self._start.keys():
            self.problem = self.problem or "the counters of energy have changed meanwhile"
            return None
        spent_uj = 0
        for package, count in now.items():
            turned = count < self._start[package]
            spent_uj += count - self._start[package] + (_range_uj(package) if turned else 0)
        return spent_uj / 1e6 if spent_uj >= 0 else None

    def _read(self) -> dict[Path, int]:
        """The counter of each package, in microjoules."""
        packages = sorted(path for path in _POWERCAP.glob("intel-rapl:*") if path.name.count(":") == 1)
        if not packages:
            self.problem = f"there is no RAPL counter in {_POWERCAP}, as in most virtual machines and on Arm"
            return {}
        try:
            return {package: int((package / "energy_uj").read_text()) for package in packages}
        except (OSError, ValueError) as error:
            self.problem = (
                f"the RAPL counter cannot be read ({error}); allow it with "
                f"`sudo chmod a+r {_POWERCAP}/intel-rapl:*/energy_uj` until the next start"
            )
            return {}


def _range_uj(package: Path) -> int:
    """Where the counter starts again at 0; 0 if it is not told."""
    try:
        return int((package / "max_energy_range_uj").read_text())
    except (OSError, ValueError):
        return 0


@dataclass(frozen=True)
class CpuUse:
    """Seconds since some start: that the cores which this process may run on were idle, and that it worked itself.

    Idleness is counted exactly, and work by ticks; so it is what tells how much others work.
    """

    clock_s: float
    idle_s: float | None  # None where the system does not tell
    own_s: float  # with its ended children
    cores: int  # hardware threads

    def others(self, later: CpuUse) -> float | None:
        """How many cores somebody else had between the two, in the mean; children must have ended."""
        passed_s = later.clock_s - self.clock_s
        if self.idle_s is None or later.idle_s is None or passed_s <= 0:
            return None
        own_s = max(0.0, later.own_s - self.own_s)  # a forked child starts at 0
        return max(0.0, later.cores - (later.idle_s - self.idle_s + own_s) / passed_s)

    def others_share(self, later: CpuUse) -> float | None:
        """The same as a share of all those cores."""
        others = self.others(later)
        return None if others is None else others / later.cores


def cpu_use(stat: Path = _STAT) -> CpuUse:
    """Until now."""
    own_s = time.process_time() + sum(os.times()[2:4])
    try:
        allowed = {f"cpu{cpu}" for cpu in os.sched_getaffinity(0)}
        rows = [line.split() for line in stat.read_text("utf-8").split("\nintr", 1)[0].splitlines()]
    except (OSError, AttributeError):  # elsewhere than on Linux
        rows, allowed = [], set[str]()
    idle = [int(row[1 + field]) for row in rows if row[0] in allowed for field in _IDLE]
    idle_s = sum(idle) / os.sysconf("SC_CLK_TCK") if idle else None
    return CpuUse(time.perf_counter(), idle_s, own_s, len(idle) // len(_IDLE) or os.cpu_count() or 1)
