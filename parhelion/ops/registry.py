"""Every op by name: its contract and its providers. The folders are the list; nothing registers itself at import."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from parhelion.errors import ConfigError
from parhelion.ops.contract import Contract
from parhelion.ops.provider import Availability, Provider
from parhelion.packs.format import TILE_PROGRAMS


@dataclass(frozen=True)
class Op:
    """An op as its package exports it (``OP``).

    Attributes:
        contract: the class; its instances carry the static dimensions.
        providers: in the order in which tables list them.
        examples: instances that tests and tables use, small ones first.
    """

    contract: type[Contract]
    providers: tuple[Provider, ...]
    examples: tuple[Contract, ...]

    @property
    def name(self) -> str:
        return self.contract.name

    @property
    def tile_programs(self) -> str:
        """The name of the provider of the tile programs in its own folder, one of ``TILE_PROGRAMS``."""
        return next((each.name for each in self.providers if each.name in TILE_PROGRAMS), TILE_PROGRAMS[0])

    def provider(self, name: str) -> Provider:
        """The provider of that name.

        Raises:
            ConfigError: there is none; the message lists those that exist.
        """
        for provider in self.providers:
            if provider.name == name:
                return provider
        known = ", ".join(provider.name for provider in self.providers)
        raise ConfigError(f"{self.name} has no provider {name!r}; its providers are {known}")


COLLECTIVES = ("all_reduce",)
"""Ops over several ranks, under ``parhelion/ops/collectives``; ``op`` knows them, tuning and packs do not."""


def needs_other_ranks(contract: Contract) -> bool:
    """Whether several processes must call it together: none of them can tune it by itself."""
    return getattr(contract, "num_ranks", 1) > 1


def most_tokens(contract: Contract, num_tokens: int) -> int:
    """The largest M up to ``num_tokens`` that an op has tile programs for: itself, unless the contract names the most
    that its op's are written for (``most_tokens``).
    """
    return min(num_tokens, getattr(contract, "most_tokens", num_tokens))


def has_programs(contract: Contract, num_tokens: int, target: str) -> bool:
    """Whether an op has tile programs for M = ``num_tokens`` on a target: on all, unless the contract names those that
    its op's are written for (``targets``).
    """
    return num_tokens == most_tokens(contract, num_tokens) and target in getattr(contract, "targets", (target,))


def needs_single_rows(contracts: Iterable[Contract]) -> bool:
    """Whether one of these has programs only for steps in which each token is the only one of its row
    (``single_rows``).
    """
    return any(getattr(each, "single_rows", False) for each in contracts)


def own_parts(contracts: Iterable[Contract]) -> list[Contract]:
    """What one rank does of these by itself: of a contract that several must call together what it names as its own
    part (``own_part``), or nothing.
    """
    parts = [getattr(each, "own_part", None) if needs_other_ranks(each) else each for each in contracts]
    return [part for part in parts if part is not None]


@functools.cache
def op_names() -> tuple[str, ...]:
    """The folders under ``parhelion/ops`` that hold a contract, in alphabetical order, without collectives."""
    return tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/contract.py")))


def op(name: str) -> Op:
    """An op by name.

    Raises:
        ConfigError: there is none; the message lists those that exist.
    """
    if name not in (*op_names(), *COLLECTIVES):
        raise ConfigError(f"there is no op {name!r}; the ops are {', '.join((*op_names(), *COLLECTIVES))}")
    folder = f"collectives.{name}" if name in COLLECTIVES else name
    found: Op = importlib.import_module(f"parhelion.ops.{folder}").OP
    return found


def ops() -> tuple[Op, ...]:
    """All ops."""
    return tuple(op(name) for name in op_names())


def provider_report(device: torch.device) -> list[Availability]:
    """Every provider of every op, and whether it can serve on this device."""
    report = []
    for each in ops():
        for provider in each.providers:
            why_not = provider.why_not(device)
            report.append(Availability(each.name, provider.name, why_not is None, why_not or "available"))
    return report
