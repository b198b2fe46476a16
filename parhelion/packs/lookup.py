"""From a pack's rows to who serves an M: made once, at load, so that a step only indexes a table."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from parhelion.errors import PackError
from parhelion.packs.format import Pack, Row

MAX_TABLE = 8192
"""The largest M that is looked up; the last row serves every larger one."""


class BucketTable:
    """The rows of one contract, found by M without a search.

    Attributes:
        rows: ascending in ``num_tokens``: each serves M from above the one before it, the last one all larger M too.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        """Lay out the table.

        Raises:
            PackError: there are no rows, they are of several contracts, or two are for one bucket.
        """
        self.rows = tuple(sorted(rows, key=lambda row: row.num_tokens))
        buckets = [row.num_tokens for row in self.rows]
        if len({row.contract for row in rows}) != 1 or len(set(buckets)) < len(buckets) or buckets[0] < 1:
            contracts = ", ".join(sorted({row.contract for row in rows})) or "no contract"
            raise PackError(
                f"rows of {contracts} for M up to {buckets} make no table: rows of one contract do, each M once"
            )
        self._last = len(buckets) - 1
        self._size = min(buckets[-1], MAX_TABLE) + 1
        self._table = array("H", (bisect_left(buckets, num_tokens) for num_tokens in range(self._size)))

    def index(self, num_tokens: int) -> int:
        """Position in ``rows`` of the one that serves M = ``num_tokens``."""
        return self._table[num_tokens] if num_tokens < self._size else self._last

    def row(self, num_tokens: int) -> Row:
        """The row that serves M = ``num_tokens``."""
        return self.rows[self.index(num_tokens)]


def rows_by_contract(rows: Iterable[Row]) -> dict[str, tuple[Row, ...]]:
    """Contract key to its rows, ascending in ``num_tokens``."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row.contract, []).append(row)
    return {contract: tuple(sorted(group, key=lambda row: row.num_tokens)) for contract, group in grouped.items()}


def usable_rows(pack: Pack, source_hashes: Mapping[str, str]) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """A pack's rows without the stale ones, and a note in words on each op whose rows were left out.

    Args:
        source_hashes: op to the hash of its sources here.
    """
    stale = stale_ops(pack, source_hashes)
    return tuple(row for row in pack.rows if row.op not in stale), tuple(stale.values())


def stale_ops(pack: Pack, source_hashes: Mapping[str, str]) -> dict[str, str]:
    """Op to why its rows must not be used, for those of the pack's ops whose sources are others here."""
    counts: dict[str, int] = {}
    for row in pack.rows:
        counts[row.op] = counts.get(row.op, 0) + 1
    return {
        op: f"{op}: its {count} rows in pack {pack.name} are not used: {why}; tune it again or get a newer pack"
        for op, count in counts.items()
        if (why := _why_stale(op, pack, source_hashes)) is not None
    }


def _why_stale(op: str, pack: Pack, source_hashes: Mapping[str, str]) -> str | None:
    packed, here = pack.source_hashes.get(op), source_hashes.get(op)
    if here is None:
        return "there is no such op here"
    if packed is None:
        return "the pack does not say which sources they were measured with"
    return None if packed == here else f"they were measured with other sources ({packed[:12]}; here: {here[:12]})"
