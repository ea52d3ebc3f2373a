"""How busy others kept the machine while something was measured: a number without it cannot be trusted."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
IDLE = (3, 4)  # fields of the first line of /proc/stat that are no work: idle, iowait
COUNTED_ALREADY = (8, 9)  # guest, guest_nice: parts of user and nice


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


def machine_s(stat: Path = STAT) -> float | None:
    """Seconds that all CPUs together have worked."""
    try:
        first = stat.read_text("utf-8").split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    ticks = sum(int(value) for index, value in enumerate(first) if index not in (*IDLE, *COUNTED_ALREADY))
    return ticks / os.sysconf("SC_CLK_TCK")
