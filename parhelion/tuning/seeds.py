"""Configs that won somewhere near: at another size of M, for another shape of the op, or on another device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import msgspec

from parhelion.errors import PackError
from parhelion.ops.contract import Contract
from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.launching import launch_module
from parhelion.ops.tile_programs import module_for, programs_module
from parhelion.packs.format import TILE_PROGRAMS, Pack, Row
from parhelion.tuning.contract_key import contract_of_key
from parhelion.tuning.model_contracts import kind
from parhelion.tuning.neighbours import fits, normal
from parhelion.tuning.prune import gemm_of

MOST_SEEDS = 3
"""Of each source, for one row."""


@dataclass(frozen=True)
class Winner:
    """A config that was the best of its row."""

    contract: Contract
    bucket: int
    config: Any


class SeedBank:
    """The winners of packs.

    Args:
        packs: of any device.
        target: what is tuned for.

    Attributes:
        notes: what of the packs cannot be used, a sentence each.
    """

    def __init__(self, packs: Sequence[Pack], target: GemmTarget) -> None:
        self.notes: list[str] = []
        self._target = target
        self._winners: list[Winner] = []
        self._narrow: set[str] = set()
        for pack in packs:
            self._take(pack)

    def seeds(self, contract: Contract, bucket: int) -> list[Any]:
        """The packs' configs for a row, the nearest first."""
        return nearest(self._winners, contract, bucket, self._target)

    def narrows(self, op: str) -> bool:
        """Whether a pack was tuned for the same target, so that only what is near its configs is searched."""
        return op in self._narrow

    def _take(self, pack: Pack) -> None:
        unknown = 0
        for row in pack.rows:
            try:
                self._winners += _winners(row)
            except PackError:
                unknown += 1
                continue
            # Configs that nobody has measured are no reason to look nowhere else.
            if pack.fingerprint.target == self._target.name and row.best.time_us > 0:
                self._narrow.add(row.op)
        if unknown:
            self.notes.append(f"seed pack {pack.name}: {unknown} of {len(pack.rows)} rows are not known here")


def nearest(
    winners: Iterable[Winner], contract: Contract, bucket: int, target: GemmTarget, count: int = MOST_SEEDS
) -> list[Any]:
    """The configs of the nearest winners, made to fit a row, each once."""
    found: dict[Any, None] = {}
    for winner in _by_distance(winners, contract, bucket):
        config = fitted(winner.config, contract, bucket, target)
        if config is not None:
            found[config] = None
        if len(found) == count:
            break
    return list(found)


def distance(a: Contract, bucket_a: int, b: Contract, bucket_b: int) -> float:
    """How many doublings of a size lie between two rows; infinite if they differ in more than sizes."""
    if kind(a) != kind(b):
        return math.inf
    apart = abs(math.log2(bucket_a / bucket_b))
    for field in fields(a):
        here, there = getattr(a, field.name), getattr(b, field.name)
        if isinstance(here, int) and not isinstance(here, bool) and here > 0 and there > 0:
            apart += abs(math.log2(here / there))
    return apart


def fitted(config: Any, contract: Contract, bucket: int, target: GemmTarget) -> Any | None:
    """A config as another row can use it; None if it cannot."""
    shape = gemm_of(contract, target)
    if shape is None or not isinstance(config, GemmConfig):
        # An op's second program may be for other rows alone.
        module = module_for(contract.name, config)
        is_first = module is launch_module(contract.name)
        return config if is_first or module.candidates(contract, bucket, target) else None
    # A tile with more rows than there are tokens is waste; with a few tokens it holds all of them.
    rows = max(16, bucket)
    if config.block_m > rows or rows <= 64:
        config = replace(config, block_m=rows)
    config = normal(config, shape)
    return config if fits(config, shape, target) else None


def _by_distance(winners: Iterable[Winner], contract: Contract, bucket: int) -> list[Winner]:
    measured = [(distance(each.contract, each.bucket, contract, bucket), each) for each in winners]
    return [each for apart, each in sorted(measured, key=lambda pair: pair[0]) if apart < math.inf]


def _winners(row: Row) -> Iterator[Winner]:
    """The row's fastest tile program.

    Raises:
        PackError: its contract or config is not known here.
    """
    for candidate in (row.best, *row.runners_up):
        if candidate.provider in TILE_PROGRAMS and candidate.config is not None:
            contract = contract_of_key(row.contract)
            try:
                config = msgspec.convert(candidate.config, programs_module(row.op, candidate.provider).Config)
            except msgspec.ValidationError as error:
                raise PackError(f"{row.contract}: the config {candidate.config} is not known here ({error})") from None
            yield Winner(contract, row.num_tokens, config)
            return
