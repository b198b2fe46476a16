"""Ray as far as ``RayHosts`` uses it: actors run in this process, on nodes that a test makes up."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from ray.exceptions import RayTaskError

from parhelion.distributed.interfaces import LOOPBACK


@dataclass
class Node:
    """A machine of the cluster.

    Attributes:
        versions: that it has, instead of this machine's.
        gpus: of an actor there.
    """

    name: str
    resources: dict[str, float]
    versions: dict[str, str] = field(default_factory=dict)
    gpus: list[int] = field(default_factory=list)
    failure: Exception | None = None

    def described(self) -> dict[str, Any]:
        """As ``ray.nodes`` does."""
        own = {f"node:{self.name}-address": 1.0}
        return {
            "NodeID": self.name,
            "Alive": True,
            "NodeManagerHostname": self.name,
            "NodeManagerAddress": f"{self.name}-address",
            "Resources": {**self.resources, **own},
        }


class FakeRay:
    """The cluster, and what was asked of it.

    Args:
        nodes: the machines; this one is the first.
        has_room: whether a placement group gets its place, bundle N on machine N, the last machine taking the rest.
        places: the machine of each bundle, where it is another.
    """

    def __init__(self, nodes: list[Node], has_room: bool = True, places: Sequence[int] = ()) -> None:
        self.machines = nodes
        self.places = places
        self.has_room = has_room
        self.bundles: list[dict[str, float]] = []
        self.strategy = ""
        self.actors: list[dict[str, Any]] = []
        self.killed: list[Any] = []
        self.removed = False
        self.address: str | None = None
        self.here = self.machines[0]
        self.util = SimpleNamespace(get_node_ip_address=lambda: LOOPBACK)

    def init(self, address: str, **_: Any) -> None:
        self.address = address

    def is_initialized(self) -> bool:
        return self.address is not None

    def shutdown(self) -> None:
        self.address = None

    def nodes(self) -> list[dict[str, Any]]:
        return [node.described() for node in self.machines]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: self.machines[0].name)

    def get_gpu_ids(self) -> list[int]:
        return self.here.gpus

    def placement_group(self, bundles: list[dict[str, float]], strategy: str) -> Any:
        self.bundles, self.strategy = bundles, strategy
        return SimpleNamespace(wait=lambda seconds: self.has_room)

    def placement_group_table(self, _: Any) -> dict[str, Any]:
        return {"bundles_to_node_id": {i: self._machine_of(i).name for i in range(len(self.bundles))}}

    def _machine_of(self, bundle: int) -> Node:
        return self.machines[self.places[bundle] if self.places else min(bundle, len(self.machines) - 1)]

    def remove_placement_group(self, _: Any) -> None:
        self.removed = True

    def remote(self, kind: type[Any]) -> Any:
        def made(**options: Any) -> Any:
            node = self._machine_of(options["scheduling_strategy"]["placement_group_bundle_index"])
            self.actors.append(options)
            return SimpleNamespace(remote=lambda: FakeActor(self, kind(), node))

        return SimpleNamespace(options=made)

    def get(self, asked: Callable[[], Any], timeout: float | None = None) -> Any:
        return asked()

    def wait(self, asked: list[Callable[[], Any]], timeout: float) -> tuple[list[Any], list[Any]]:
        try:
            asked[0]()
        except subprocess.TimeoutExpired:
            return [], asked
        except Exception:
            pass
        return asked, []

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)


class FakeActor:
    """Calls methods when their results are asked for, as if on the node."""

    def __init__(self, cluster: FakeRay, instance: Any, node: Node) -> None:
        self._cluster = cluster
        self._instance = instance
        self._node = node

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> Callable[[], Any]:
            def run() -> Any:
                self._cluster.here = self._node
                if self._node.failure is not None:
                    raise self._node.failure
                if name == "versions" and self._node.versions:
                    return self._node.versions
                try:
                    return getattr(self._instance, name)(*arguments)
                except subprocess.TimeoutExpired:
                    raise  # not over yet
                except Exception as error:
                    raise RayTaskError(name, "trace", error) from None

            return run

        return SimpleNamespace(remote=remote)
