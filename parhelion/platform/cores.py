"""How many cores this process may use; known without torch, for processes that only start others."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """Logical cores this process may run on: its affinity mask, cut by a cgroup quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return cores
