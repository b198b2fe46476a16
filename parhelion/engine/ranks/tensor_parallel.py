"""An engine of several ranks: whether a model's layers can be shared, where ranks run, and how they step."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from parhelion.config import EngineConfig
from parhelion.distributed import layouts
from parhelion.distributed.given_up import RELEASE_S, Releaser
from parhelion.distributed.rendezvous import (
    LEAVE_TIMEOUT_S,
    Place,
    abort_connections,
    check_no_group,
    leave,
    open_connections,
    take_place,
)
from parhelion.engine.device.graphs import GraphCache
from parhelion.engine.device.worker import DeviceWorker
from parhelion.engine.host.worker import Worker
from parhelion.engine.kv_storage import KVCacheSize
from parhelion.engine.messages import AddRequest
from parhelion.engine.ranks.pipeline_parallel import size_of, stage_of
from parhelion.engine.ranks.placement import rank_device, rank_hosts
from parhelion.engine.ranks.processes import CAUSE_TIMEOUT_S, CHECK_S, RankProcesses
from parhelion.engine.step_result import PendingStep, StepResult
from parhelion.errors import EngineDeadError, ParhelionError, first_line
from parhelion.models.checkpoint import read_model_config
from parhelion.models.config import ModelConfig
from parhelion.quantization import QuantScheme, choose_head_scheme, choose_scheme
from parhelion.scheduler import StepPlan


class OtherRanks:
    """The other ranks of an engine, and this process's place in their group.

    Args:
        config: all options, ``tp`` or ``pp`` above 1.
        model_path: a folder or a ``.gguf`` file.
        draft_path: of a draft model or head; None: there is none.

    Attributes:
        config: the options as this rank has them on its machine.
        place: of this process, which is rank 0.
        start_s: seconds until all of them were there.

    Raises:
        ConfigError: the model or the devices do not allow so many ranks.
        EngineDeadError: a rank's process did not start.
    """

    def __init__(self, config: EngineConfig, model_path: Path, draft_path: Path | None = None) -> None:
        started = time.monotonic()
        model = read_model_config(model_path)
        scheme = choose_scheme(model.quantization, config.quantization)
        check_tp(model, scheme, config.tp)
        # Refuses more stages than layers before a process is started.
        stage_of(model, scheme, choose_head_scheme(config.lm_head_quantization), config.pp, 0)
        self._closed = threading.Event()
        self._watcher: threading.Thread | None = None
        self._releaser: Releaser | None = None
        self._failure: ParhelionError | None = None
        self._has_group = config.tp > 1
        self.place = Place()
        check_no_group()
        hosts = rank_hosts(config)
        try:
            self.config = hosts.config
            self._device = device = rank_device(self.config, 0)
            self._processes = RankProcesses(config, model_path, hosts, draft_path)
        except BaseException:
            hosts.close()
            raise
        try:
            self._processes.wait_for_all()
            store = self._processes.join()
            before = open_connections()
            with self.blamed():
                self.place = self._joined(lambda: take_place(store, 0, config.tp, config.pp, device, hosts.interface))
            if device.type == "cpu":
                connections = open_connections() - before
                self._start_watcher(lambda: abort_connections(connections))
        except BaseException:
            self.close()
            raise
        self.start_s = time.monotonic() - started

    @property
    def pids(self) -> dict[int, int]:
        """Process id of every other rank."""
        return self._processes.pids

    def smallest(self, own: KVCacheSize) -> KVCacheSize:
        """The KV cache that all ranks have room for; see ``RankProcesses``."""
        size = self._processes.smallest(own)
        if self._device.type != "cpu":
            if not self.place.group.is_alone:
                self._releaser = Releaser(self._device, self.place.group)
            self._start_watcher(self._release_device)
        return size

    @property
    def names(self) -> list[str]:
        """Of every other rank its number, host and process."""
        return self._processes.names

    def give_up(self, why: EngineDeadError) -> None:
        """End what this rank waits for, and with it the engine, for this reason."""
        self._processes.give_up(why)

    def abandon(self) -> None:
        """End them and leave no file, whatever this rank does."""
        self._processes.abandon()

    def _release_device(self) -> None:
        """End what the device waits for."""
        if self.place.links is not None:
            self.place.links.abort()
        if self._releaser is not None:
            self._releaser.give_up()

    def warmed_up(self) -> None:
        """Everything has been used once, and no graph has been captured yet."""
        if self._releaser is not None:
            self._releaser.prepare()

    def check(self) -> None:
        """Raise what ended a rank, if any has ended."""
        self._processes.check()

    def _start_watcher(self, give_up: Callable[[], None]) -> None:
        self._watcher = threading.Thread(target=self._watch, args=(give_up,), name="ranks", daemon=True)
        self._watcher.start()

    def _watch(self, give_up: Callable[[], None]) -> None:
        """End what this rank waits for if another rank is gone: NCCL does not notice, nor does gloo where a host is cut
        off or a process hangs.
        """
        while not self._closed.wait(CHECK_S):
            try:
                self._processes.check()
            except ParhelionError as error:
                self._failure = error
                give_up()
                return

    def _joined(self, join_group: Callable[[], Place]) -> Place:
        """Join the group, but do not wait for a rank that has ended."""
        joined: Future[Place] = Future()

        def run() -> None:
            try:
                joined.set_result(join_group())
            except Exception as error:
                joined.set_exception(error)

        # A daemon: whoever waits for a rank that has ended keeps no process alive.
        threading.Thread(target=run, daemon=True).start()
        while True:
            try:
                return joined.result(CHECK_S)
            except TimeoutError:
                self.check()

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Look for another rank behind what is raised within: a collective fails wherever one of the ranks fails.

        Raises:
            ParhelionError: a rank failed or ended. What no other rank is behind is this one's, rank 0's.
        """
        try:
            yield
        except ParhelionError:
            raise
        except Exception as error:
            if self._failure is not None:
                raise self._failure from error
            try:
                self._processes.check_for(CAUSE_TIMEOUT_S)
            except ParhelionError as cause:
                raise cause from error
            # Whatever it is, NCCL's or the device's: nobody but the ranks knows where it was.
            own = f"rank 0 on {platform.node()} (process {os.getpid()})"
            raise EngineDeadError(f"{own} failed: {first_line(error)}") from error
        if self._failure is not None:
            # What was waited for was given up, and is meaningless.
            raise self._failure

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> None:
        """Let the other ranks run a step."""
        self._processes.execute(plan, admitted)

    def result_of(self, step: int) -> StepResult:
        """What a step produced on the last of several stages; see ``RankProcesses``."""
        return self._processes.result_of(step)

    def tell(self, step: int, token_ids: Sequence[int]) -> None:
        """Let the ranks that share the first of several stages know what a step has sampled."""
        if not self.place.group.is_alone:
            self._processes.tell(step, token_ids)

    def close(self) -> None:
        """End the other ranks and leave the group."""
        self._closed.set()
        if self._watcher is not None:
            self._watcher.join(2 * RELEASE_S)
        self._processes.close(self._leave)

    def _leave(self) -> None:
        if self.place.links is not None:
            self.place.links.abort(LEAVE_TIMEOUT_S)
        if self._has_group:
            leave()


class TensorParallelWorker:
    """Runs this rank's part of every step, while the others run theirs.

    Args:
        worker: this rank's.
        others: the other ranks, which have the same worker.
    """

    def __init__(self, worker: Worker | DeviceWorker, others: OtherRanks) -> None:
        self._worker = worker
        self._others = others

    @property
    def graphs(self) -> GraphCache | None:
        """This rank's captured graphs, if any are used."""
        return self._worker.graphs if isinstance(self._worker, DeviceWorker) else None

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> PendingStep:
        """See ``Worker``.

        Raises:
            EngineDeadError: a rank has ended.
        """
        with self._others.blamed():
            return _SharedStep(self._worker.execute(plan, admitted), self._others)


class _SharedStep:
    """A step under way, whose failure may be another rank's."""

    def __init__(self, step: PendingStep, others: OtherRanks) -> None:
        self._step = step
        self._others = others

    def wait(self) -> StepResult:
        """The step's result."""
        with self._others.blamed():
            return self._step.wait()


def check_tp(model: ModelConfig, scheme: QuantScheme, tp: int) -> None:
    """See that a model can be divided among so many ranks.

    Raises:
        ConfigError: it cannot; the message names the sizes that would work.
    """
    layouts.check_tp(size_of(model, scheme), tp)
