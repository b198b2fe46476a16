"""Times that are made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from parhelion.ops.contract import Contract
from parhelion.ops.ways import Way


@dataclass(frozen=True)
class KnownTimes:
    """Of launches, and of whole blocks at any M; nothing is known unless it is given."""

    one: Callable[[Contract, int], float | None] = lambda contract, num_tokens: None
    blocks: Mapping[tuple[Contract, ...], float] = field(default_factory=dict)

    def time_us(self, contract: Contract, num_tokens: int) -> float | None:
        return self.one(contract, num_tokens)

    def block_us(self, way: Way, num_tokens: int) -> float | None:
        return self.blocks.get(tuple(way))
