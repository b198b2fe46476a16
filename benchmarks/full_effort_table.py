"""What the tuner found beside what Helion's own search found at full effort, as part of a tuning's table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import msgspec


class FullEffort(msgspec.Struct):
    """One search of one matrix product, as ``h100_tune.py`` writes it."""

    m: int
    k: int
    n: int
    provider: str
    found_us: float | None
    tile_us: float | None
    full_us: float | None
    full_s: float

    @property
    def product(self) -> tuple[int, int, int]:
        return self.m, self.k, self.n


def full_effort_lines(searches: Sequence[FullEffort]) -> list[str]:
    """Each product with the best of its searches, which was timed beside what serves, and the seconds of all."""
    lines, ratios = [], []
    for (m, k, n), several in groupby(sorted(searches, key=lambda each: each.product), lambda each: each.product):
        taken = list(several)
        best = min(taken, key=lambda each: each.full_us or math.inf)
        if best.full_us is None or best.found_us is None:
            continue
        ratios.append(best.found_us / best.full_us)
        tile = "-" if best.tile_us is None else f"{best.tile_us:.1f}"
        lines.append(
            f"| {m}, {k} x {n} | {best.provider} | {best.found_us:.1f} | {tile} | {best.full_us:.1f} "
            f"| {sum(each.full_s for each in taken):.0f} s | {ratios[-1]:.2f} |"
        )
    if not ratios:
        return []
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    heading = (
        "| M, K x N | served by | served, us | tile program, us | Helion's search, us | it took | served / searched |"
    )
    last = f"| geometric mean, highest | | | | | | {mean:.2f}, {max(ratios):.2f} |"
    return [heading, "|---|---|---:|---:|---:|---:|---:|", *lines, last]
