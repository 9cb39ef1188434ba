"""How many cores this process may keep busy: of the machine, of its affinity, of its container."""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")  # within a container, its own group


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Cores this process may use, at least 1: those it may run on, and no more than its quota.

    A container's CPU limit is a quota of time, which no count of cores shows: threads beyond it
    would only wait for each other.
    """
    if hasattr(os, "sched_getaffinity"):  # Linux only
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Cores' worth of time that the group may use; None without a limit (cgroup v2, then v1)."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        quota = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):  # "max": no limit
        return None
    return quota if quota > 0 else None
