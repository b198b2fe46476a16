"""What Ray runs on the machine of a rank: an actor that tells what the machine is like and has the rank as a child."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from typing import Any

import msgspec
import ray

from parhelion.distributed.interfaces import Interface, interface_at, interface_named
from parhelion.engine.connection import how_it_ended
from parhelion.engine.ranks.messages import RankOptions
from parhelion.engine.ranks.start import start_rank
from parhelion.platform.cores import usable_cores


class Machine(msgspec.Struct, frozen=True):
    """What rank 0 must know of the machine of a rank.

    Attributes:
        versions: of what must be the same on all of them, by name.
        interface: that ranks talk through.
        num_cores: that its processes may use.
        gpus: that Ray has set aside for the rank, as the driver numbers them.
    """

    versions: dict[str, str]
    interface: Interface
    num_cores: int
    gpus: list[str]


class RankActor:
    """One rank's place on a machine: it takes the resources, and the rank's process, its child, ends when it does."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def versions(self) -> dict[str, str]:
        """Of what must be the same everywhere."""
        return installed_versions()

    def describe(self, interface: str | None) -> Any:
        """A ``Machine`` as plain values.

        Args:
            interface: the name of one to use; None: the one that Ray uses.

        Raises:
            ConfigError: the machine has no such interface.
        """
        address = ray.util.get_node_ip_address()
        found = interface_named(interface) if interface is not None else interface_at(address)
        gpus = [str(each) for each in ray.get_gpu_ids()]
        return msgspec.to_builtins(Machine(installed_versions(), found, usable_cores(), gpus))

    def start(self, options: bytes) -> int:
        """Start the rank; returns its process id.

        Args:
            options: ``RankOptions`` as JSON.
        """
        self._process = start_rank(msgspec.json.decode(options, type=RankOptions))
        return self._process.pid

    def wait(self) -> str:
        """How the rank ended, in words, once it has."""
        assert self._process is not None
        return how_it_ended(self._process.wait())


def installed_versions() -> dict[str, str]:
    """Of the packages whose processes compute and talk together."""
    return {name: version(name) for name in ("parhelion", "torch")}
