"""Which of a pack's times of whole blocks say something about its rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from parhelion.packs.format import BlockTime

Bucket = tuple[str, int]
"""A row's contract and ``num_tokens``."""


def with_rows(blocks: Iterable[BlockTime], rows: Collection[Bucket]) -> tuple[BlockTime, ...]:
    """Those of which every contract has its row at their M among the given ones; sorted by contracts and M.

    A block's time is that of the rows it was measured with: where one of them is gone, or comes from elsewhere now, it
    says nothing any more.
    """
    known = set(rows)
    kept = [each for each in blocks if known.issuperset((key, each.num_tokens) for key in each.contracts)]
    return tuple(sorted(kept, key=lambda each: (each.contracts, each.num_tokens)))
