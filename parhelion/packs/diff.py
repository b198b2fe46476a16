"""How two packs differ, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from parhelion.packs.format import Candidate, Pack, Row

Change = Literal["only_a", "only_b", "provider", "config", "same"]


@dataclass(frozen=True)
class Difference:
    """One bucket of one contract in two packs.

    Attributes:
        contract, num_tokens: which.
        change: what differs of who serves: it is in one pack only, another provider, another config, or nothing.
        a, b: who serves; None in the pack that lacks the row.
        time_ratio: b's time over a's, measured apart; None if one is missing or a's is 0.
    """

    contract: str
    num_tokens: int
    change: Change
    a: Candidate | None
    b: Candidate | None
    time_ratio: float | None


def diff(a: Pack, b: Pack) -> list[Difference]:
    """Every bucket of both packs, sorted by contract and M."""
    return list(_differences(_by_bucket(a), _by_bucket(b)))


def _by_bucket(pack: Pack) -> dict[tuple[str, int], Row]:
    return {(row.contract, row.num_tokens): row for row in pack.rows}


def _differences(a: dict[tuple[str, int], Row], b: dict[tuple[str, int], Row]) -> Iterator[Difference]:
    for key in sorted(a.keys() | b.keys()):
        here = a[key].best if key in a else None
        there = b[key].best if key in b else None
        ratio = there.time_us / here.time_us if here and there and here.time_us > 0 else None
        yield Difference(*key, _change(here, there), here, there, ratio)


def _change(a: Candidate | None, b: Candidate | None) -> Change:
    if a is None:
        return "only_b"
    if b is None:
        return "only_a"
    if a.provider != b.provider:
        return "provider"
    return "same" if a.config == b.config else "config"
