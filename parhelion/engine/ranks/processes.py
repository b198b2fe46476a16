"""The other ranks of an engine, as rank 0 sees them: processes that load, run every step that it runs, and may die."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from parhelion.config import EngineConfig
from parhelion.distributed.rendezvous import file_store, reach_store
from parhelion.distributed.secret_store import SecretStore
from parhelion.distributed.store_process import StoreProcess
from parhelion.engine.connection import how_it_ended
from parhelion.engine.kv_storage import KVCacheSize
from parhelion.engine.messages import AddRequest, EngineFailed
from parhelion.engine.ranks.messages import (
    ExecuteStep,
    FromRank,
    Hello,
    Join,
    Leave,
    Loaded,
    RankOptions,
    Sampled,
    Serve,
    StepDone,
)
from parhelion.engine.ranks.port import RankPort
from parhelion.engine.ranks.start import LocalHosts, RankHosts, StartedRank
from parhelion.engine.step_result import StepResult
from parhelion.errors import EngineDeadError, ParhelionError, error_of_kind
from parhelion.scheduler import StepPlan

logger = logging.getLogger("parhelion.engine")

STORE = "store"
"""The file in which ranks of one host meet, in the folder of their socket."""

HELLO_TIMEOUT_S = 120.0
"""How long a process may take to import what it needs and say hello."""

LOAD_TIMEOUT_S = 600.0
"""How long the slowest rank may load beyond rank 0."""

STOP_TIMEOUT_S = 3.0
"""How long a rank gets to end by itself."""

CAUSE_TIMEOUT_S = 3.0
"""How long a failed step waits to learn whether another rank is to blame."""

LOST_TIMEOUT_S = 1.0
"""How long is waited to be told how a process ended whose connection is gone."""

SHOW_S = 0.5
"""How long ranks get to write where they are, before anything ends."""

CHECK_S = 0.1
"""How often whoever waits for the other ranks looks whether they still live."""

_Answer = TypeVar("_Answer", Hello, Loaded)


class RankProcesses:
    """Processes of ranks 1 and up, which die with this one. Any thread may ask how they are.

    Args:
        config: the engine's.
        model_path: a folder or a ``.gguf`` file.
        hosts: where they run; None: on this host.
        draft_path: of a draft model or head; None: there is none.
        hello_timeout_s, load_timeout_s: see the constants.
    """

    def __init__(
        self,
        config: EngineConfig,
        model_path: Path,
        hosts: RankHosts | None = None,
        draft_path: Path | None = None,
        hello_timeout_s: float = HELLO_TIMEOUT_S,
        load_timeout_s: float = LOAD_TIMEOUT_S,
    ) -> None:
        self._hello_timeout_s = hello_timeout_s
        self._load_timeout_s = load_timeout_s
        self._hosts = hosts or LocalHosts(config)
        interface = self._hosts.interface
        self._silence_s = config.heartbeat_timeout_s
        self._port = RankPort(interface, self._silence_s)
        self._store = StoreProcess(interface) if interface is not None else None
        self._own_end: SecretStore | None = None
        self._tp = config.tp
        self._is_pipeline = config.pp > 1
        self._said: dict[tuple[int, type[FromRank]], FromRank] = {}
        self._done: dict[int, StepResult] = {}
        self._failures: dict[int, EngineFailed] = {}
        self._cause: ParhelionError | None = None
        self._checking = threading.Lock()
        self._processes: dict[int, StartedRank] = {}
        self._closed = False
        try:
            for rank in range(1, config.num_ranks):
                port = self._port
                path = str(model_path.absolute())
                draft = str(draft_path.absolute()) if draft_path is not None else None
                options = RankOptions(
                    config,
                    path,
                    rank,
                    port.address,
                    port.secret,
                    0,
                    port.server_key,
                    life_address=port.life_address(rank),
                    draft_path=draft,
                )
                self._processes[rank] = self._hosts.start(options)
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

    def join(self) -> dist.Store:
        """Let them join the group through a store, and load; returns this rank's end of it.

        Raises:
            EngineDeadError: the store of several hosts did not start.
        """
        if self._store is None:
            path = f"{self._port.folder}/{STORE}"
            self._port.send(Join(path=path))
            return file_store(path, 1 + len(self._processes))
        place = self._store.place()
        self._port.send(Join(store=place))
        self._own_end = reach_store(place, 0)
        return self._own_end

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

    def tell(self, step: int, token_ids: Sequence[int]) -> None:
        """Let them know what a step has sampled, row after row."""
        self._port.send(Sampled(step, tuple(token_ids)))

    def result_of(self, step: int) -> StepResult:
        """What a step produced on the last stage; waits for it.

        Raises:
            ParhelionError: see ``check``.
        """
        while step not in self._done:
            if not self._read(CHECK_S):
                self.check()
        return self._done.pop(step)

    def check(self) -> None:
        """See that all live.

        Raises:
            ParhelionError: one has failed, ended or fallen silent; it names the rank, its host and the cause.
        """
        with self._checking:
            found = None if self._cause is not None else self._find_cause()
            # Meanwhile they may have been given up.
            self._cause = self._cause or found
            if self._cause is not None:
                raise self._cause

    def _find_cause(self) -> ParhelionError | None:
        self._read_all()
        if self._failures:
            # Ranks fail where another one has ended, and that one may have said nothing.
            time.sleep(CHECK_S)
        lost = self._port.lost()
        for rank, process in self._processes.items():
            ended = process.ended(LOST_TIMEOUT_S if rank in lost else 0.0)
            if ended is None and rank not in lost:
                continue
            # Its last words may have come in between.
            self._read_all()
            if rank not in self._failures:
                ended = ended or self._silent
                return EngineDeadError(f"{self._name(rank)} {ended}")
        if self._store is not None and (status := self._store.status) is not None and not self._have_met:
            return EngineDeadError(f"{self._store.name} {how_it_ended(status)}")
        return self._failed(next(iter(self._failures))) if self._failures else None

    @property
    def _have_met(self) -> bool:
        """All have loaded, which they do in a group. Only symmetric memory would still need the store, and ranks do
        without it where it cannot be had.
        """
        return all((rank, Loaded) in self._said for rank in self._processes)

    @property
    def _silent(self) -> str:
        """How a rank is that does not answer, in words."""
        return f"is cut off or hangs: its connection ended, or it gave no sign of life for {self._silence_s:g} s"

    @property
    def names(self) -> list[str]:
        """Of each its number, stage, host and process."""
        return [self._name(rank) for rank in self._processes]

    def give_up(self, why: EngineDeadError) -> None:
        """Let each show where it is, as far as that can be; then whoever looks how they are finds that they ended for
        this reason.
        """
        for process in self._processes.values():
            process.show_stacks()
        time.sleep(SHOW_S)
        # Whoever looks may be waiting for the line to the ranks, and what does not proceed be the thread that has it.
        waited = self._checking.acquire(timeout=SHOW_S)
        self._cause = self._cause or why
        if waited:
            self._checking.release()

    def abandon(self) -> None:
        """End all of them and leave no file: this process is about to end, whatever its other threads do."""
        for process in self._processes.values():
            process.kill()
        if self._store is not None:
            self._store.kill()
        self._port.remove_folder()

    def check_for(self, seconds: float) -> None:
        """See whether one fails within so many seconds; see ``check``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check()
            time.sleep(CHECK_S)

    def close(self, leave: Callable[[], None] | None = None) -> None:
        """End all of them; those that do not end by themselves are killed.

        Args:
            leave: lets this rank leave the group, once the others have ended and while there is a store.
        """
        if self._closed:
            return
        self._closed = True
        self._port.send(Leave())
        deadline = time.monotonic() + STOP_TIMEOUT_S
        # Who has not said hello has not been told to leave, and who is lost has not heard it.
        told = set(self._port.hosts) - self._port.lost()
        for rank, process in self._processes.items():
            if process.ended(max(0.0, deadline - time.monotonic()) if rank in told else 0.0) is None:
                if rank in told:
                    logger.warning("%s did not end by itself, and is killed", self._name(rank))
                process.kill()
        if leave is not None:
            leave()
        if self._own_end is not None:
            self._own_end.close()
        if self._store is not None:
            self._store.close()
        self._port.close()
        self._hosts.close()

    def _collect(self, kind: type[_Answer], timeout_s: float, missing: str) -> list[_Answer]:
        """One message of a kind from every rank."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._read(CHECK_S)
            answers = {rank: self._said.get((rank, kind)) for rank in self._processes}
            found = [answer for answer in answers.values() if isinstance(answer, kind)]
            if len(found) == len(answers):
                return found
            self.check()
            if time.monotonic() > deadline:
                rank = next(rank for rank, answer in answers.items() if answer is None)
                raise EngineDeadError(f"{self._name(rank)} {missing} for {timeout_s:g} s: it is ended")

    def _read_all(self) -> None:
        while self._read(0):
            pass

    def _read(self, timeout_s: float) -> bool:
        """Take in a message, if one comes in time."""
        found = self._port.receive(timeout_s)
        if found is None:
            return False
        rank, message = found
        if isinstance(message, StepDone):
            self._done[message.step] = message.result
            return True
        self._said[rank, type(message)] = message
        if isinstance(message, EngineFailed):
            self._failures.setdefault(rank, message)
        return True

    def _name(self, rank: int) -> str:
        process = self._processes[rank]
        stage = f" (stage {rank // self._tp})" if self._is_pipeline else ""
        return f"rank {rank}{stage} on {process.host} (process {process.pid})"

    def _failed(self, rank: int) -> ParhelionError:
        failure = self._failures[rank]
        return error_of_kind(failure.kind, f"{self._name(rank)} failed: {failure.message}")
