"""Helion's own search as one of the tuner's strategies: what it finds is timed like any other config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from parhelion.errors import ParhelionError
from parhelion.ops.contract import Contract
from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.target import GemmTarget
from parhelion.tuning.helion_search import FullEffort, has_twin
from parhelion.tuning.journal import Journal, Searched
from parhelion.tuning.neighbours import fits, neighbours, normal
from parhelion.tuning.programs import plain
from parhelion.tuning.prune import gemm_of
from parhelion.tuning.row_state import RowState

OVER_S = 60.0
"""What a search takes beyond its seconds, as a rule: its process starts, and Helion finishes what it has begun. On an
H200 with 16 cores it was 20 to 49 s.
"""

LEAST_GRACE_S = 120.0
"""Before a search is killed that does not end; one that is given longer may also end that much later."""


class HelionSearch(Protocol):
    """Searches a matrix product, alone on the device."""

    def __call__(self, contract: Contract, num_tokens: int, seconds: float) -> FullEffort:
        """What it found within so many seconds.

        Raises:
            ParhelionError: nothing.
        """
        ...


@dataclass
class HelionStrategy:
    """Asks Helion for configs, a row at a time.

    Args:
        search: its search.
        seconds: for each row.
        journal: remembers what it found.
        target: as configs know it.
        elapsed: seconds since the session began.
        deadline_s: by that clock; a search that would end later is not begun.
        begins: told of the row that it is asked for.

    Attributes:
        found: contracts and sizes of M that it was asked for, with its config, or None.
        problems: why it found nothing, a sentence each.
    """

    search: HelionSearch
    seconds: float
    journal: Journal
    target: GemmTarget
    elapsed: Callable[[], float]
    deadline_s: float
    begins: Callable[[RowState], None] = lambda row: None
    found: dict[tuple[str, int], GemmConfig | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    _over_s: float = OVER_S

    def configs(self, group: Sequence[RowState]) -> list[Any]:
        """Its config for the largest of rows that share programs, if a processor can hold it, and that one's
        neighbours; nothing if it has no kernel for them, or no time.
        """
        contract, bucket = group[-1].contract, group[-1].bucket
        if not has_twin(contract):
            return []
        searched = self.journal.searched(contract.key(), bucket, self.seconds) or self._searched(group[-1])
        if searched is None:
            return []
        config = None if searched.config is None else msgspec.convert(searched.config, GemmConfig)
        config = None if config is None else _usable(config, contract, self.target)
        self.found[contract.key(), bucket] = config
        if searched.problem is not None:
            self.problems.append(f"Helion's search: {searched.problem}")
        return [] if config is None else [config, *neighbours(config, contract, bucket, self.target)]

    def notes(self, rows: Sequence[RowState]) -> list[str]:
        """What came of it, a sentence each."""
        if not self.found:
            return [
                "Helion's search was not asked: no product that it has a kernel for could gain anything, or there was "
                "no time left; the same command with a larger --budget goes on from here"
            ]
        best = sum(
            row.best_config is not None and row.best_config == self.found.get((row.contract.key(), row.bucket))
            for row in rows
        )
        return [
            f"Helion's search was asked for {len(self.found)} products, {self.seconds:g} s each; its own config is the "
            f"fastest tile program of {best}",
            *self.problems,
        ]

    def _searched(self, row: RowState) -> Searched | None:
        start = self.elapsed()
        if start + self.seconds + self._over_s > self.deadline_s:
            return None
        self.begins(row)
        config, problem = None, None
        try:
            config = self.search(row.contract, row.bucket, self.seconds).gemm
        except ParhelionError as error:
            problem = str(error)
        now = self.elapsed()
        self._over_s = max(self._over_s, now - start - self.seconds)
        entry = Searched(row.contract.key(), row.bucket, self.seconds, plain(config), problem, now - start, now)
        self.journal.add(entry)
        return entry


def grace_s(seconds: float) -> float:
    """What a search of so many seconds may take beyond them until it is killed."""
    return max(LEAST_GRACE_S, seconds)


def _usable(config: GemmConfig, contract: Contract, target: GemmTarget) -> GemmConfig | None:
    """The config as it was found, however unusual its tile; None if a processor cannot hold it."""
    shape = gemm_of(contract, target)
    assert shape is not None
    config = normal(config, shape)
    return config if fits(config, shape, target) else None
