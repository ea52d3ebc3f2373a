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
_IDLE = (3, 4)  # fields of the first line of /proc/stat that are no work: idle, iowait
_COUNTED_ALREADY = (8, 9)  # guest, guest_nice: parts of user and nice


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
    """Seconds of CPU time since some start, of the whole machine and of this process with its ended children."""

    clock_s: float
    machine_s: float | None  # None where the system does not tell
    own_s: float

    def others_share(self, later: CpuUse) -> float | None:
        """Share of all CPUs that was spent between the two by somebody else; children must have ended."""
        if self.machine_s is None or later.machine_s is None:
            return None
        others_s = (later.machine_s - self.machine_s) - (later.own_s - self.own_s)
        return max(0.0, others_s) / ((later.clock_s - self.clock_s) * (os.cpu_count() or 1))


def cpu_use() -> CpuUse:
    """Until now."""
    spent = os.times()
    return CpuUse(time.perf_counter(), machine_s(), sum(spent[:4]))


def machine_s(stat: Path = _STAT) -> float | None:
    """Seconds that all CPUs together have worked."""
    try:
        first = stat.read_text("utf-8").split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    ticks = sum(int(value) for index, value in enumerate(first) if index not in (*_IDLE, *_COUNTED_ALREADY))
    return ticks / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class CoreUse:
    """Seconds since some start in which the cores that this process may run on were idle, and its own threads worked.

    Idleness is counted exactly where the kernel sleeps then, and work by ticks; so it is what tells others' work.
    """

    clock_s: float
    idle_s: float
    own_s: float
    cores: int  # hardware threads

    def is_older_than(self, seconds: float) -> bool:
        """Whether it was taken so long ago."""
        return time.perf_counter() - self.clock_s >= seconds

    def others(self, later: CoreUse) -> float:
        """How many cores somebody else had between the two, in the mean; ended children are somebody else."""
        passed = later.clock_s - self.clock_s
        own = max(0.0, later.own_s - self.own_s)  # a forked child starts at 0
        return max(0.0, later.cores - (later.idle_s - self.idle_s + own) / passed)


def core_use(stat: Path = _STAT) -> CoreUse | None:
    """Until now; None where the system does not tell."""
    try:
        allowed = {f"cpu{cpu}" for cpu in os.sched_getaffinity(0)}
        rows = [line.split() for line in stat.read_text("utf-8").split("\nintr", 1)[0].splitlines()]
    except (OSError, AttributeError):  # elsewhere than on Linux
        return None
    clock_s, own_s = time.perf_counter(), time.process_time()
    idle = [int(row[1 + field]) for row in rows if row[0] in allowed for field in _IDLE]
    return CoreUse(clock_s, sum(idle) / os.sysconf("SC_CLK_TCK"), own_s, len(idle) // len(_IDLE)) if idle else None
