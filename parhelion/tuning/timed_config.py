"""Asking for those programs of a config that a measured step launches, where there are more that serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parhelion.ops.contract import Contract
from parhelion.ops.launching import launch_module


@dataclass(frozen=True)
class Timed:
    """Asks only for what a measured step launches: of an op whose inputs decide beside M which programs are launched.

    Attributes:
        config: the op's.
    """

    config: Any


def timed(contract: Contract, config: Any) -> Any:
    """What a request names, to have a config's programs timed."""
    return Timed(config) if hasattr(launch_module(contract.name), "timed_inputs") else config


def config_of(named: Any) -> Any:
    """The config that a request names."""
    return named.config if isinstance(named, Timed) else named
