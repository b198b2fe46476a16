"""A rank whose collectives do nothing: results are wrong, and what is left of a step is honest.

Run as a script it is a rank's process (``parhelion.engine.ranks.process``); ``silence`` does the same to this one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from parhelion.distributed.group import Group
from parhelion.engine.ranks import process as rank_process
from parhelion.engine.ranks import start as rank_start
from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.provider import fixed
from parhelion.ops.registry import needs_other_ranks
from parhelion.ops.resolve import Resolver


def silence() -> None:
    """From now on this process, and the ranks that it starts, exchange nothing."""
    rank_start.RANK_COMMAND = (sys.executable, str(Path(__file__).resolve()))
    usual_launcher, usual_bind = Resolver.launcher, Resolver.bind

    def launcher(self: Resolver, contract: Contract) -> Launcher:
        return _alone(self, contract) if needs_other_ranks(contract) else usual_launcher(self, contract)

    def bind(self: Resolver, contract: Contract, *weights: Any) -> Launcher:
        if needs_other_ranks(contract):
            return fixed(_alone(self, contract), weights)
        return usual_bind(self, contract, *weights)

    Resolver.launcher, Resolver.bind = launcher, bind  # type: ignore[method-assign]
    Group.gather_columns = _repeated  # type: ignore[method-assign]
    Group.add_up = _kept  # type: ignore[method-assign]
    Group.from_first = _kept  # type: ignore[method-assign]


def _alone(resolver: Resolver, contract: Contract) -> Launcher:
    """What a rank does beside the exchange, as it is served for one rank; nothing of a sum alone."""
    part = getattr(contract, "own_part", None)
    return _unchanged if part is None else resolver.launcher(part)


def _unchanged(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def _repeated(self: Group, part: torch.Tensor) -> torch.Tensor:
    return part.repeat(1, self.size)


def _kept(self: Group, values: torch.Tensor) -> torch.Tensor:
    return values


if __name__ == "__main__":
    silence()
    sys.exit(rank_process.main())
