"""Whether processes have ended."""

from __future__ import annotations

import time
from collections.abc import Sequence

import psutil


def have_ended(processes: Sequence[psutil.Process]) -> bool:
    return all(map(has_ended, processes))


def has_ended(process: psutil.Process) -> bool:
    """With all its threads: the first one may be a zombie while others still hold what the process held."""
    try:
        return not process.is_running() or (process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1)
    except psutil.NoSuchProcess:
        return True  # between the two


def wait_for_end(processes: Sequence[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not have_ended(processes):
        assert time.monotonic() < deadline, f"still there: {processes}"
        time.sleep(0.05)
