"""Asking for those programs of a config that a measured step launches, where there are more that serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parhelion.ops.contract import Contract
from parhelion.ops.tile_programs import module_for


@dataclass(frozen=True)
class Timed:
    """Asks only for what a measured step launches: of an op whose inputs decide beside M which programs are launched.

    Attributes:
        config: the op's.
    """

    config: Any


def timed_request(contract: Contract, bucket: int, config: Any) -> tuple[Contract, int, Any] | None:
    """The ``Request`` that builds a config to be timed, the same for all rows and configs that then launch the same
    programs; None if these are what serves.
    """
    of_op = getattr(module_for(contract.name, config), "timed_programs", None)
    if of_op is None:
        return None
    shared_bucket, shared_config = of_op(bucket, config)
    return contract, shared_bucket, Timed(shared_config)


def config_of(named: Any) -> Any:
    """The config that a request names."""
    return named.config if isinstance(named, Timed) else named
