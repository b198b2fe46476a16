"""Times of whole blocks, found by what a block calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from parhelion.ops.contract import Contract, program_key
from parhelion.ops.registry import op, op_names
from parhelion.ops.ways import Way
from parhelion.packs.format import BlockTime
from parhelion.packs.lookup import BucketTable


class BlockTimes:
    """A pack's times of whole blocks.

    Args:
        blocks: as the pack has them.
        table: the pack's rows of a contract; None if it has none that are used.
    """

    def __init__(self, blocks: Iterable[BlockTime], table: Callable[[Contract], BucketTable | None]) -> None:
        self._table = table
        self._times = {
            (tuple(map(key_of_programs, each.contracts)), each.num_tokens): each.time_us for each in blocks
        }  # fmt: skip

    def time_us(self, way: Way, num_tokens: int) -> float | None:
        """Microseconds of a block at the M of the rows that serve M = ``num_tokens``; None where its calls' rows are of
        several sizes, or the block was not measured at theirs.
        """
        if not self._times:
            return None
        tables = [self._table(contract) for contract in way]
        sizes = {None if table is None else table.row(num_tokens).num_tokens for table in tables}
        size = sizes.pop()
        if sizes or size is None or num_tokens > size:
            return None
        return self._times.get((tuple(key_of_programs(contract.key()) for contract in way), size))


def key_of_programs(key: str) -> str:
    """A contract's ``key()`` without the dimensions on which neither its programs nor their times depend."""
    name = key.partition("(")[0]
    return program_key(op(name).contract, key) if name in op_names() else key
