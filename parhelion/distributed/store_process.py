"""Starts the store at which ranks of several hosts meet, and ends it."""

from __future__ import annotations

import os
import select
import subprocess
import sys

import msgspec

from parhelion.distributed.interfaces import Interface
from parhelion.distributed.store_messages import StorePlace
from parhelion.errors import EngineDeadError

START_TIMEOUT_S = 60.0
"""How long the process may take to import what it needs."""

END_TIMEOUT_S = 3.0
"""How long it may take to end."""


class StoreProcess:
    """A store in a process of its own, which ends with this one.

    In a thread of rank 0's process it would have to wait for Python's lock, which torch keeps there while ranks hand
    each other their symmetric memory: rank 0 would wait for another rank, and that one for the store.

    Args:
        interface: of this machine, where it listens.
    """

    def __init__(self, interface: Interface) -> None:
        self._place: StorePlace | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "parhelion.distributed.store_server", interface.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    @property
    def name(self) -> str:
        """For people."""
        return f"the store of the ranks on {os.uname().nodename} (process {self._process.pid})"

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    def place(self) -> StorePlace:
        """How ranks reach it; waits until it listens.

        Raises:
            EngineDeadError: it does not.
        """
        if self._place is None:
            pipe = self._process.stdout
            assert pipe is not None
            line = pipe.readline() if select.select([pipe], [], [], START_TIMEOUT_S)[0] else b""
            if not line:
                raise EngineDeadError(f"{self.name} did not start within {START_TIMEOUT_S:g} s, or ended")
            self._place = msgspec.json.decode(line, type=StorePlace)
        return self._place

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
