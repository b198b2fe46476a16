"""Ranks on the machines of a Ray cluster: a placement group has room for all of them, and an actor starts each one."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import ray
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from parhelion.config import EngineConfig, read_environment
from parhelion.distributed.interfaces import Interface
from parhelion.engine.ranks.messages import RankOptions
from parhelion.engine.ranks.ray_actor import Machine, RankActor, installed_versions
from parhelion.engine.ranks.start import StartedRank
from parhelion.errors import ConfigError, EngineDeadError, ParhelionError, first_line

logger = logging.getLogger("parhelion.engine")

CONNECT_TIMEOUT_S = 5.0
"""How long the cluster's head may take to accept a connection."""

PLACE_TIMEOUT_S = 30.0
"""How long the cluster may take to find room."""

ACTOR_TIMEOUT_S = 60.0
"""How long an actor may take to start, and a rank's process in it."""

CLOSE_TIMEOUT_S = 5.0
"""How long the cluster may take to take things back. It does so by itself when this process has ended."""


class RayHosts:
    """Room for an engine's ranks in a Ray cluster that this machine is in. Rank 0 is this process.

    Args:
        config: all options, ``executor`` ray.

    Attributes:
        config: the options for rank 0's machine.
        interface: of rank 0's machine.

    Raises:
        ConfigError: no cluster, no room, or machines that do not fit together.
        EngineDeadError: a machine does not answer.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._placed: PlacementGroup | None = None
        self._actors: list[Any] = []
        self._closed = False
        try:
            _join_cluster(config)
            self._place(config)
        except BaseException:
            self.close()
            raise

    def start(self, options: RankOptions) -> StartedRank:
        rank, machine = options.rank, self._machines[options.rank]
        own = msgspec.structs.replace(options, config=self._config_of(rank), interface=machine.interface)
        actor = self._actors[rank]
        pid = self._answer(rank, actor.start.remote(msgspec.json.encode(own)))
        return RayRank(actor, self._hosts[rank], pid)

    def close(self) -> None:
        if self._closed or not ray.is_initialized():
            return
        self._closed = True
        # A cluster that is cut off would keep whoever asks it waiting.
        closing = threading.Thread(target=self._give_back, daemon=True)
        closing.start()
        closing.join(CLOSE_TIMEOUT_S)

    def _give_back(self) -> None:
        try:
            for actor in self._actors:
                ray.kill(actor)
            if self._placed is not None:
                remove_placement_group(self._placed)
        except Exception as error:
            # The cluster, or its control store, is another one by now, and nothing of this engine is in it.
            logger.info("a Ray cluster took nothing back: %s", first_line(error))
        finally:
            ray.shutdown()

    def _place(self, config: EngineConfig) -> None:
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        here = nodes[ray.get_runtime_context().get_node_id()]
        on_gpu = config.device != "cpu" and (config.device == "cuda" or "GPU" in here["Resources"])
        self._config = replace(config, device="cuda" if on_gpu else "cpu")
        need = {"GPU": 1} if on_gpu else {"CPU": 1}
        # Every node has a resource of its own name, by which rank 0's place is taken on this one.
        own = {f"node:{here['NodeManagerAddress']}": 0.001}
        self._placed = placed = placement_group([{**need, **own}, *[need] * (config.num_ranks - 1)], strategy="PACK")
        if not placed.wait(PLACE_TIMEOUT_S):
            raise ConfigError(
                f"the Ray cluster has found no room for {config.num_ranks} ranks within {PLACE_TIMEOUT_S:g} s: each "
                f"needs 1 {next(iter(need))} that nobody else has taken, and the first one has to be on "
                f"{here['NodeManagerHostname']}; the cluster has {_listed(nodes)}"
            )
        found = placement_group_table(placed)["bundles_to_node_id"]
        nodes = {node["NodeID"]: node for node in ray.nodes()}
        bundles = by_machine([found[bundle] for bundle in range(config.num_ranks)])
        self._nodes = [found[bundle] for bundle in bundles]
        self._hosts = [nodes[node]["NodeManagerHostname"] for node in self._nodes]
        for bundle in bundles:
            strategy = PlacementGroupSchedulingStrategy(placed, placement_group_bundle_index=bundle)
            actor = ray.remote(RankActor).options(
                num_cpus=need.get("CPU", 0), num_gpus=need.get("GPU", 0), scheduling_strategy=strategy
            )
            self._actors.append(actor.remote())
        self._meet(config)

    def _meet(self, config: EngineConfig) -> None:
        """Learn what each machine is like."""
        ours = installed_versions()
        asked = [actor.versions.remote() for actor in self._actors]
        for rank, versions in enumerate(asked):
            check_versions(ours, self._hosts[0], self._answer(rank, versions), self._hosts[rank])
        asked = [actor.describe.remote(config.interface) for actor in self._actors]
        answers = [self._answer(rank, machine) for rank, machine in enumerate(asked)]
        self._machines = [msgspec.convert(answer, Machine) for answer in answers]
        self.interface: Interface = self._machines[0].interface
        if self._machines[0].gpus:
            # CUDA has not been asked for anything yet; the other ranks find this set in their processes.
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self._machines[0].gpus)
        self.config = self._config_of(0)

    def _config_of(self, rank: int) -> EngineConfig:
        """The options with what a rank's machine has for it."""
        config, node = self._config, self._nodes[rank]
        sharing = Counter(self._nodes)[node] * config.dp
        return replace(config, threads=config.threads or max(1, self._machines[rank].num_cores // sharing))

    def _answer(self, rank: int, asked: Any) -> Any:
        """What a rank's actor has answered.

        Raises:
            ParhelionError: it cannot; the rank, the machine and the cause are named.
        """
        name = f"rank {rank} cannot start on {self._hosts[rank]}"
        try:
            return ray.get(asked, timeout=ACTOR_TIMEOUT_S)
        except GetTimeoutError:
            raise EngineDeadError(f"{name}: its Ray actor has not answered for {ACTOR_TIMEOUT_S:g} s") from None
        except RayTaskError as error:
            kind = type(error.cause) if isinstance(error.cause, ParhelionError) else EngineDeadError
            raise kind(f"{name}: {error.cause}") from None
        except Exception as error:
            raise EngineDeadError(f"{name}: {first_and_last_line(error)}") from None


class RayRank:
    """A rank's process, the child of an actor.

    Args:
        actor: that has started it.
        host: name of the machine.
        pid: of the process there.
    """

    def __init__(self, actor: Any, host: str, pid: int) -> None:
        self.host = host
        self.pid = pid
        self._actor = actor
        self._end = actor.wait.remote()

    def ended(self, seconds: float) -> str | None:
        ready, _ = ray.wait([self._end], timeout=seconds)
        if not ready:
            return None
        try:
            how: str = ray.get(self._end)
        except Exception as error:
            return f"is lost: {first_and_last_line(error)}"
        return how

    def show_stacks(self) -> None:
        """Its actor waits for its end and hears nothing else."""

    def kill(self) -> None:
        ray.kill(self._actor)


def by_machine(nodes: Sequence[str]) -> list[int]:
    """Places in the order in which ranks take them: the first one, and those of one machine one after the other. So
    ranks that share layers are as close together as can be, and few stages hand over to another machine.

    Args:
        nodes: the machine of each place.
    """
    first_seen = {node: place for place, node in reversed(list(enumerate(nodes)))}
    return sorted(range(len(nodes)), key=lambda place: (first_seen[nodes[place]], place))


def check_versions(ours: Mapping[str, str], here: str, theirs: Mapping[str, str], there: str) -> None:
    """See that two machines have the same packages.

    Raises:
        ConfigError: they differ.
    """
    for name, version in ours.items():
        if (other := theirs.get(name)) != version:
            raise ConfigError(
                f"{there} has {name} {other or '(none)'} and {here} has {name} {version}: ranks compute and talk "
                "together, so install the same on all machines"
            )


def first_and_last_line(error: Exception) -> str:
    """Ray's errors end with the cause, below the traces of all that it went through."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = f" ... {lines[-1][:200]}" if len(lines) > 1 else ""
    return first_line(error) + last


def _join_cluster(config: EngineConfig) -> None:
    """Make this process one of Ray's.

    Raises:
        ConfigError: there is no cluster that this machine is in.
    """
    # It would say that signals are not handled in a thread, which is as it should be.
    logging.getLogger("ray").setLevel(logging.ERROR)
    address = config.ray_address or read_environment().ray_address
    try:
        if address is not None:
            _see_that_it_listens(address)
        ray.init(address=address or "auto", log_to_driver=False, configure_logging=False)
    except Exception as error:
        raise ConfigError(
            f"there is no Ray cluster {f'at {address}' if address else 'known here'} that this machine is in "
            f"({first_line(error)}): run 'ray start --head' on one machine, 'ray start --address HOST:6379' on each "
            "other one, this one among them"
        ) from None


def _see_that_it_listens(address: str) -> None:
    """Ray itself would try for minutes."""
    host, separator, port = address.rpartition(":")
    if separator and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()


def _listed(nodes: Mapping[str, Any]) -> str:
    """What each machine has, to whomever it is given now."""
    named = ((node["NodeManagerHostname"], node["Resources"]) for node in nodes.values())
    return "; ".join(f"{name}: {has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs" for name, has in named)
