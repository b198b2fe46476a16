"""An engine whose layers several ranks share: whether a model can be divided, where ranks run, and how they step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from parhelion.config import EngineConfig
from parhelion.distributed.group import Group
from parhelion.distributed.layouts import sizes_of_tp, why_not_tp
from parhelion.distributed.model_size import ModelSize
from parhelion.distributed.rendezvous import abort, host_store, join, leave, open_connections
from parhelion.engine.device_worker import DeviceWorker
from parhelion.engine.graphs import GraphCache
from parhelion.engine.kv_storage import KVCacheSize
from parhelion.engine.messages import AddRequest
from parhelion.engine.placement import rank_device, rank_hosts
from parhelion.engine.ranks import CAUSE_TIMEOUT_S, CHECK_S, RankProcesses
from parhelion.engine.step_result import PendingStep, StepResult
from parhelion.engine.worker import Worker
from parhelion.errors import ConfigError, ParhelionError
from parhelion.models.checkpoint import read_model_config
from parhelion.models.config import ModelConfig
from parhelion.quantization import QuantScheme, choose_scheme
from parhelion.scheduler import StepPlan


class OtherRanks:
    """The other ranks of an engine, and this process's place in their group.

    Args:
        config: all options, ``tp`` above 1.
        model_path: a folder or a ``.gguf`` file.

    Attributes:
        config: the options as this rank has them on its machine.
        group: this process is rank 0 of it.
        start_s: seconds until all of them were there.

    Raises:
        ConfigError: the model or the devices do not allow so many ranks.
        EngineDeadError: a rank's process did not start.
    """

    def __init__(self, config: EngineConfig, model_path: Path) -> None:
        started = time.monotonic()
        model = read_model_config(model_path)
        check_tp(model, choose_scheme(model.quantization, config.quantization), config.tp)
        hosts = rank_hosts(config)
        try:
            self.config = hosts.config
            device = rank_device(self.config, 0)
            store = host_store(config.tp, hosts.interface)
            self._processes = RankProcesses(config, model_path, hosts)
        except BaseException:
            hosts.close()
            raise
        self._connections: frozenset[int] = frozenset()
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="ranks", daemon=True)
        try:
            self._processes.wait_for_all()
            self._processes.join(store.port)
            before = open_connections()
            with self.blamed():
                self.group = self._joined(lambda: join(store, 0, config.tp, device, hosts.interface))
            self._connections = open_connections() - before
            self._watcher.start()
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
        return self._processes.smallest(own)

    def check(self) -> None:
        """Raise what ended a rank, if any has ended."""
        self._processes.check()

    def _watch(self) -> None:
        """Let collectives under way fail once a rank is known to be gone, also where they would never notice."""
        while not self._closing.wait(CHECK_S):
            try:
                self.check()
            except ParhelionError:
                abort(self._connections)
                return

    def _joined(self, join_group: Callable[[], Group]) -> Group:
        """Join the group, but do not wait for a rank that has ended."""
        joined: Future[Group] = Future()

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
            ParhelionError: a rank failed or ended; else what was raised is raised again.
        """
        try:
            yield
        except ParhelionError:
            raise
        except Exception as error:
            try:
                self._processes.check_for(CAUSE_TIMEOUT_S)
            except ParhelionError as cause:
                raise cause from error
            raise

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> None:
        """Let the other ranks run a step."""
        self._processes.execute(plan, admitted)

    def close(self) -> None:
        """End the other ranks and leave the group."""
        self._closing.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self._processes.close()
        leave()


class TensorParallelWorker:
    """Runs every step on all ranks.

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
            self._others.execute(plan, admitted)
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
    size = ModelSize(
        model.architecture,
        model.num_layers,
        model.hidden_size,
        model.intermediate_size,
        model.num_heads,
        model.num_kv_heads,
        model.head_dim,
        model.vocab_size,
        model.tie_word_embeddings,
        scheme,
    )
    if (reason := why_not_tp(size, tp)) is not None:
        works = sizes_of_tp(size)
        raise ConfigError(f"tp is {tp}, but {reason}; tp may be {', '.join(map(str, works)) or 'nothing but 1'}")
