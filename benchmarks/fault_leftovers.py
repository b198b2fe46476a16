"""What a server leaves on its machine: processes of its session, shared memory, semaphores, and files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

CHECK_S = 0.1

ENGINE, RANK = "parhelion.engine.process", "parhelion.engine.ranks.process"

HANGING = Path(__file__).parent / "hanging"
"""On ``PYTHONPATH``, lets processes hang that are told to."""

_SHARED = Path("/dev/shm")
_SYSTEM_V = Path("/proc/sysvipc")


@dataclass(frozen=True)
class SharedMemory:
    """Names in ``/dev/shm`` (POSIX semaphores among them), and identifiers of System V memory and semaphores."""

    names: frozenset[str]

    @classmethod
    def now(cls) -> SharedMemory:
        """What there is."""
        names = {str(path) for path in _SHARED.rglob("*")} if _SHARED.exists() else set()
        for kind in ("shm", "sem", "msg"):
            table = _SYSTEM_V / kind
            lines = table.read_text().splitlines()[1:] if table.exists() else []
            names |= {f"System V {kind} {line.split()[1]}" for line in lines}
        return cls(frozenset(names))

    def leaked(self) -> list[str]:
        """What has come since, and that no process has open or mapped: the machine may have other users."""
        new = SharedMemory.now().names - self.names
        return sorted(new - _in_use(new)) if new else []


def _in_use(names: Iterable[str]) -> set[str]:
    """Those names that a process has open or mapped."""
    found: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        maps, opened = "", set[str]()
        with suppress(OSError):
            maps = (process / "maps").read_text()
            for link in (process / "fd").iterdir():
                # Files are closed meanwhile.
                with suppress(OSError):
                    opened.add(os.readlink(link))
        found |= {name for name in names if name in maps or name in opened}
    return found


def is_alive(process: psutil.Process) -> bool:
    """It runs or is stopped; one whose parent has not asked for its status has ended."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def processes_of(session: int) -> list[psutil.Process]:
    """All that live in a session or process group."""
    found = []
    for pid in psutil.pids():
        try:
            if session in (os.getsid(pid), os.getpgid(pid)):
                found.append(psutil.Process(pid))
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return [process for process in found if is_alive(process)]


def command_of(process: psutil.Process) -> list[str]:
    """How it was started; nothing if it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def running(module: str, processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that run a module, the oldest first."""
    found = [process for process in processes if module in command_of(process)]
    return sorted(found, key=lambda process: (process.create_time(), process.pid))


def until(holds: Callable[[], bool], seconds: float) -> float | None:
    """Seconds until it holds; None if that takes longer."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > seconds:
            return None
        time.sleep(CHECK_S)
    return time.monotonic() - began
