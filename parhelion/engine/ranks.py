"""The other ranks of an engine, as rank 0 sees them: processes that load, run every step that it runs, and may die."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec

from parhelion.config import EngineConfig, child_environment
from parhelion.engine.connection import SPIN_BRIEFLY, how_it_ended
from parhelion.engine.kv_storage import KVCacheSize
from parhelion.engine.messages import AddRequest, EngineFailed
from parhelion.engine.rank_messages import (
    ExecuteStep,
    FromRank,
    Hello,
    Join,
    Leave,
    Loaded,
    RankOptions,
    Serve,
    StepDone,
)
from parhelion.engine.rank_port import RankPort
from parhelion.engine.step_result import StepResult
from parhelion.errors import EngineDeadError, ParhelionError, error_of_kind
from parhelion.scheduler import StepPlan

RANK_COMMAND = (sys.executable, "-m", "parhelion.engine.rank_process")
"""What a rank's process runs."""

HELLO_TIMEOUT_S = 120.0
"""How long a process may take to import what it needs and say hello."""

LOAD_TIMEOUT_S = 600.0
"""How long the slowest rank may load beyond rank 0."""

STOP_TIMEOUT_S = 3.0
"""How long a rank gets to end by itself."""

CAUSE_TIMEOUT_S = 3.0
"""How long a failed step waits to learn whether another rank is to blame."""

STEP_TIMEOUT_S = 600.0
"""How long the last stage of a pipeline may take for the oldest step under way."""

CHECK_S = 0.1
"""How often whoever waits for the other ranks looks whether they still live."""

_Answer = TypeVar("_Answer", Hello, Loaded)


class RankProcesses:
    """Processes of ranks 1 and up, which die with this one.

    Args:
        config: the engine's.
        model_path: a folder or a ``.gguf`` file.
        hello_timeout_s, load_timeout_s: see the constants.
    """

    def __init__(
        self,
        config: EngineConfig,
        model_path: Path,
        hello_timeout_s: float = HELLO_TIMEOUT_S,
        load_timeout_s: float = LOAD_TIMEOUT_S,
    ) -> None:
        self._hello_timeout_s = hello_timeout_s
        self._load_timeout_s = load_timeout_s
        self._port = RankPort()
        self._tp = config.tp
        self._is_pipeline = config.pp > 1
        self._failures: dict[int, EngineFailed] = {}
        self._done: dict[int, StepResult] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._closed = False
        try:
            for rank in range(1, config.num_ranks):
                port = self._port
                options = RankOptions(config, str(model_path), rank, port.address, port.secret, os.getpid())
                self._processes[rank] = _start(options)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> dict[int, int]:
        """Process id of every rank but this one."""
        return {rank: process.pid for rank, process in self._processes.items()}

    def wait_for_all(self) -> None:
        """Wait until every process has said hello.

        Raises:
            EngineDeadError: one ended or did not say it in time.
        """
        self._collect(Hello, self._hello_timeout_s, "said nothing")

    def join(self, port: int) -> None:
        """Let them join the group through the store at this port, and load."""
        self._port.send(Join(port))

    def smallest(self, own: KVCacheSize) -> KVCacheSize:
        """Wait until all have loaded, and settle for the KV blocks that every rank has room for.

        Raises:
            ParhelionError: a rank could not load; under the class of its own error.
            EngineDeadError: one ended or did not load in time.
        """
        loaded = self._collect(Loaded, self._load_timeout_s, "did not load the model")
        size = replace(
            own,
            num_blocks=min(own.num_blocks, *(each.num_blocks for each in loaded)),
            max_model_len=min(own.max_model_len, *(each.max_model_len for each in loaded)),
        )
        self._port.send(Serve(size.num_blocks, size.max_model_len))
        return size

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> None:
        """Hand them a step."""
        self._port.send(ExecuteStep(plan, tuple(admitted)))

    def result_of(self, step: int) -> StepResult:
        """What a step produced on the last stage; waits for it.

        Raises:
            ParhelionError: see ``check``.
            EngineDeadError: it took too long.
        """
        deadline = time.monotonic() + STEP_TIMEOUT_S
        while step not in self._done:
            if self._read(CHECK_S) is None:
                self.check()
            if time.monotonic() > deadline:
                rank = max(self._processes) + 1 - self._tp
                raise EngineDeadError(f"{self._name(rank)} did not complete step {step} in {STEP_TIMEOUT_S:g} s")
        return self._done.pop(step)

    def check(self) -> None:
        """See that all live.

        Raises:
            ParhelionError: one has failed or ended; it names the rank, its host and the cause.
        """
        self._read(0)
        if self._failures:
            # Ranks fail where another one has ended, and that one may have said nothing.
            time.sleep(CHECK_S)
        for rank, process in self._processes.items():
            if (status := process.poll()) is not None:
                # Its last words may have come in between.
                while self._read(0) is not None:
                    pass
                if rank not in self._failures:
                    raise self._ended(rank, status)
        if self._failures:
            raise self._failed(next(iter(self._failures)))

    def check_for(self, seconds: float) -> None:
        """See whether one fails within so many seconds; see ``check``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check()
            time.sleep(CHECK_S)

    def close(self) -> None:
        """End all of them; those that do not end by themselves are killed."""
        if self._closed:
            return
        self._closed = True
        self._port.send(Leave())
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for rank, process in self._processes.items():
            try:
                # Who has not said hello has not been told to leave.
                process.wait(max(0.0, deadline - time.monotonic()) if rank in self._port.hosts else 0.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._port.close()

    def _collect(self, kind: type[_Answer], timeout_s: float, missing: str) -> list[_Answer]:
        """One message of a kind from every rank."""
        answers: dict[int, _Answer] = {}
        deadline = time.monotonic() + timeout_s
        while len(answers) < len(self._processes):
            found = self._read(CHECK_S)
            if found is not None and isinstance(found[1], kind):
                answers[found[0]] = found[1]
                continue
            self.check()
            if time.monotonic() > deadline:
                rank = min(set(self._processes) - set(answers))
                raise EngineDeadError(f"{self._name(rank)} {missing} for {timeout_s:g} s: it is ended")
        return list(answers.values())

    def _read(self, timeout_s: float) -> tuple[int, FromRank] | None:
        found = self._port.receive(timeout_s)
        if found is not None:
            rank, message = found
            if isinstance(message, EngineFailed):
                self._failures.setdefault(rank, message)
            elif isinstance(message, StepDone):
                self._done[message.step] = message.result
        return found

    def _name(self, rank: int) -> str:
        host = self._port.hosts.get(rank, os.uname().nodename)
        stage = f" (stage {rank // self._tp})" if self._is_pipeline else ""
        return f"rank {rank}{stage} on {host} (process {self._processes[rank].pid})"

    def _failed(self, rank: int) -> ParhelionError:
        failure = self._failures[rank]
        return error_of_kind(failure.kind, f"{self._name(rank)} failed: {failure.message}")

    def _ended(self, rank: int, status: int) -> EngineDeadError:
        return EngineDeadError(f"{self._name(rank)} {how_it_ended(status)}")


def _start(options: RankOptions) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        RANK_COMMAND,
        stdin=subprocess.PIPE,
        env=child_environment(SPIN_BRIEFLY),
    )
    assert process.stdin is not None
    # On its standard input nobody else can read the secret.
    process.stdin.write(msgspec.json.encode(options))
    process.stdin.close()
    return process
