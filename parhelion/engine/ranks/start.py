"""Where the other ranks of an engine run, and how their processes are started there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Protocol

import msgspec

from parhelion.config import EngineConfig, child_environment
from parhelion.distributed.interfaces import Interface
from parhelion.engine.connection import SPIN_BRIEFLY, how_it_ended
from parhelion.engine.ranks.messages import RankOptions

RANK_COMMAND = (sys.executable, "-m", "parhelion.engine.ranks.process")
"""What a rank's process runs."""

SHOW_STACKS = signal.SIGUSR1
"""Whereupon a rank's process writes where its threads are, whatever they do."""


class StartedRank(Protocol):
    """The process of a rank, wherever it is."""

    @property
    def host(self) -> str:
        """Name of the machine."""
        ...

    @property
    def pid(self) -> int:
        """Process id there."""
        ...

    def ended(self, seconds: float) -> str | None:
        """How it ended, in words; None if it has not within so many seconds, as far as is known here."""
        ...

    def show_stacks(self) -> None:
        """Let it write to its standard error where its threads are, if it can be told so."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class RankHosts(Protocol):
    """The machines of an engine's ranks."""

    @property
    def config(self) -> EngineConfig:
        """The options as rank 0 shall have them on its machine."""
        ...

    @property
    def interface(self) -> Interface | None:
        """Of rank 0's machine, where the others reach it; None: all are on this one."""
        ...

    def start(self, options: RankOptions) -> StartedRank:
        """Start a rank's process, with what only its machine knows filled in.

        Raises:
            EngineDeadError: it cannot be started.
        """
        ...

    def close(self) -> None:
        """Give back what was taken for the ranks, once they have been ended."""
        ...


class LocalHosts:
    """This machine alone.

    Args:
        config: the engine's.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.interface: Interface | None = None

    def start(self, options: RankOptions) -> StartedRank:
        return LocalRank(options)

    def close(self) -> None:
        """Nothing was taken."""


class LocalRank:
    """A child of this process."""

    def __init__(self, options: RankOptions) -> None:
        self.host = os.uname().nodename
        self._process = start_rank(options)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self, seconds: float) -> str | None:
        try:
            return how_it_ended(self._process.wait(seconds))
        except subprocess.TimeoutExpired:
            return None

    def show_stacks(self) -> None:
        self._process.send_signal(SHOW_STACKS)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def start_rank(options: RankOptions) -> subprocess.Popen[bytes]:
    """A rank's process as a child of this one, which it ends with."""
    process = subprocess.Popen(
        RANK_COMMAND,
        stdin=subprocess.PIPE,
        env=child_environment(SPIN_BRIEFLY),
    )
    assert process.stdin is not None
    # On its standard input nobody else can read the secret.
    process.stdin.write(msgspec.json.encode(msgspec.structs.replace(options, parent=os.getpid())))
    process.stdin.close()
    return process
