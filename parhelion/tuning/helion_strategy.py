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
from parhelion.tuning.neighbours import neighbours
from parhelion.tuning.programs import plain
from parhelion.tuning.row_state import RowState
from parhelion.tuning.seeds import fitted


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
    found: dict[tuple[str, int], GemmConfig | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def configs(self, group: Sequence[RowState]) -> list[Any]:
        """Its config for the largest of rows that share programs, as far as it fits there, and that one's neighbours;
        nothing if it has no kernel for them, or no time.
        """
        contract, bucket = group[-1].contract, group[-1].bucket
        if not has_twin(contract):
            return []
        searched = self.journal.searched(contract.key(), bucket, self.seconds) or self._searched(contract, bucket)
        if searched is None:
            return []
        config = None if searched.config is None else msgspec.convert(searched.config, GemmConfig)
        config = None if config is None else fitted(config, contract, bucket, self.target)
        self.found[contract.key(), bucket] = config
        if searched.problem is not None:
            self.problems.append(f"Helion's search: {searched.problem}")
        return [] if config is None else [config, *neighbours(config, contract, bucket, self.target)]

    def notes(self, rows: Sequence[RowState]) -> list[str]:
        """What came of it, a sentence each."""
        if not self.found:
            return ["Helion's search was not asked: no product that it has a kernel for had the time"]
        best = sum(
            row.best_config is not None and row.best_config == self.found.get((row.contract.key(), row.bucket))
            for row in rows
        )
        return [
            f"Helion's search was asked for {len(self.found)} products, {self.seconds:g} s each; its own config is the "
            f"fastest tile program of {best}",
            *self.problems,
        ]

    def _searched(self, contract: Contract, bucket: int) -> Searched | None:
        start = self.elapsed()
        if start + self.seconds > self.deadline_s:
            return None
        config, problem = None, None
        try:
            config = self.search(contract, bucket, self.seconds).gemm
        except ParhelionError as error:
            problem = str(error)
        now = self.elapsed()
        entry = Searched(contract.key(), bucket, self.seconds, plain(config), problem, now - start, now)
        self.journal.add(entry)
        return entry
