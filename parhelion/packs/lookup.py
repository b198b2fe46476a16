"""From a pack's rows to who serves an M: made once, at load, so that a step only indexes a table."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

import msgspec

from parhelion.errors import PackError
from parhelion.packs.blocks import Bucket
from parhelion.packs.format import NEVER_SERVE, TILE_PROGRAMS, Candidate, Pack, Row

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
    """A pack's rows without the stale ones and without stale candidates, and a note in words on each op whose rows, or
    candidates, were left out.

    Args:
        source_hashes: op to the hash of its sources here.
    """
    stale = stale_sources(pack, source_hashes)
    return tuple(rows_without(pack.rows, stale)), tuple(stale.values())


def names_of(row: Row, hashed: Container[str]) -> list[str]:
    """The names in ``Pack.source_hashes`` that a row depends on: its op's, and those of its candidates that have one.

    Args:
        hashed: names that have hashes.
    """
    named = dict.fromkeys(f"{row.op}.{each.provider}" for each in (row.best, *row.runners_up))
    return [row.op, *(name for name in named if name in hashed)]


def stale_sources(pack: Pack, source_hashes: Mapping[str, str]) -> dict[str, str]:
    """Op to why its rows must not be used, for those of the pack's ops whose sources are others here.

    Where only the sources of a second program are others: ``op.provider`` to why these candidates must not be used.
    """
    counts = Counter(name for row in pack.rows for name in names_of(row, pack.source_hashes.keys() | source_hashes))
    reasons = {name: why for name in counts if (why := _why_stale(name, pack, source_hashes)) is not None}
    stale: dict[str, str] = {}
    for name, why in reasons.items():
        op, _, provider = name.partition(".")
        if not provider or op not in reasons:
            what = f"its programs in {counts[name]} rows of" if provider else f"its {counts[name]} rows in"
            stale[name] = f"{name}: {what} pack {pack.name} are not used: {why}; tune it again or get a newer pack"
    return stale


def rows_without(rows: Iterable[Row], stale: Container[str]) -> Iterator[Row]:
    """Rows without those of stale ops, and without stale candidates: then the next serves, and if none can there is no
    such row.

    Args:
        stale: names of ops, and ``op.provider`` of candidates.
    """
    for row in rows:
        candidates = (row.best, *row.runners_up)
        kept = [each for each in candidates if f"{row.op}.{each.provider}" not in stale]
        best = row.best if row.best in kept else next(filter(_can_serve, kept), None)
        if row.op not in stale and best is not None:
            others = tuple(each for each in kept if each is not best)
            yield row if len(kept) == len(candidates) else msgspec.structs.replace(row, best=best, runners_up=others)


def served_as_in(pack: Pack, rows: Iterable[Row]) -> set[Bucket]:
    """The buckets of those rows that the same candidate serves as in the pack."""
    best = {(row.contract, row.num_tokens): row.best for row in pack.rows}
    return {bucket for row in rows if best.get(bucket := (row.contract, row.num_tokens)) == row.best}


def _can_serve(candidate: Candidate) -> bool:
    return bool(candidate.binaries) or candidate.provider not in (*TILE_PROGRAMS, *NEVER_SERVE)


def _why_stale(name: str, pack: Pack, source_hashes: Mapping[str, str]) -> str | None:
    packed, here = pack.source_hashes.get(name), source_hashes.get(name)
    if here is None:
        return "there is no such op here" if "." not in name else "they are from a folder that is not here"
    if packed is None:
        return "the pack does not say which sources they were measured with"
    return None if packed == here else f"they were measured with other sources ({packed[:12]}; here: {here[:12]})"
