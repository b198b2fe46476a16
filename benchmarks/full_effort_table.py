"""What the tuner found beside what Helion's own search found at full effort, as part of a tuning's table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """One matrix product, as the tuner and as Helion's own search found it, timed in one run.

    Attributes:
        provider, found_us: what serves, and its time. tile_us: of the tuner's best tile program, which may be the same.
        full_us: of what the search found; None if it failed.
        tune_s: seconds that the tuner took for this row. full_s: that the search took, in so many searches.
        config: of the tile program. full_config: what the search found.
        problem: why a figure is missing, or a search was.
    """

    op: str
    m: int
    k: int
    n: int
    provider: str
    found_us: float | None
    tile_us: float | None
    full_us: float | None
    tune_s: float
    full_s: float
    searches: int
    config: dict[str, Any] | None
    full_config: str
    problem: str | None = None

    @property
    def product(self) -> tuple[int, int, int]:
        return self.m, self.k, self.n


def full_effort_lines(searches: Sequence[Comparison]) -> list[str]:
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
    said = [
        f"M = {each.m}, {each.k} x {each.n}: part of the search came to nothing ({each.problem})."
        for each in searches
        if each.problem is not None and each.full_us is not None
    ]
    return [heading, "|---|---|---:|---:|---:|---:|---:|", *lines, last, *(["", *said] if said else [])]
