"""What this machine's CPU is and what it has free. The one place that asks the operating system."""

from __future__ import annotations

import ctypes
import math
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from parhelion.platform.cores import usable_cores


@dataclass(frozen=True)
class CpuFingerprint:
    """Identity of a CPU device, as printed by ``parhelion doctor`` and stored beside every measurement.

    Attributes:
        name: the model name that the operating system reports.
        capability: the widest vector unit that torch dispatches to (``AVX2``, ``AVX512``, ``DEFAULT``, ...).
        cores: logical cores that this process may use, cgroup quota included.
        memory_bytes: physical memory, or the cgroup's limit where that is lower.
        torch: torch's version.
    """

    name: str
    capability: str
    cores: int
    memory_bytes: int
    torch: str


def fingerprint() -> CpuFingerprint:
    """What this process runs on."""
    return CpuFingerprint(
        name=_cpu_name(),
        capability=torch.backends.cpu.get_cpu_capability(),
        cores=usable_cores(),
        memory_bytes=min(psutil.virtual_memory().total, _cgroup_memory_limit() or 1 << 62),
        torch=str(torch.__version__),
    )


def free_memory() -> int:
    """Bytes that may still be allocated without swapping, cgroup limit included."""
    free = psutil.virtual_memory().available
    limit = _cgroup_memory_limit()
    if limit is not None:
        try:
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            free = min(free, max(0, limit - used))
        except (OSError, ValueError):
            pass
    return free


def resident_memory() -> int:
    """Bytes of this process that are in memory now."""
    return psutil.Process().memory_info().rss


def zeros_on_first_use(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of zeros whose pages the operating system hands out as they are first touched.

    ``torch.zeros`` writes them all: seconds, and resident memory, for gigabytes that may never be used.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, np.uint8)).view(dtype).view(shape)


def release_freed_memory() -> None:
    """Give memory that was freed back to the operating system, where the C library can (glibc)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cgroup_memory_limit() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
