"""When tuning has paid for itself."""

from __future__ import annotations

from collections.abc import Sequence

from parhelion.packs.format import TILE_PROGRAMS, Row
from parhelion.tuning.report.data import Payback
from parhelion.tuning.report.figures import is_measured

FORMULA = "GPU-hours = tuning seconds / 3600 × round / saved"


def paybacks(rows: Sequence[Row], tune_s: float) -> tuple[Payback, ...]:
    """By M: the GPU-hours of serving after which ``tune_s`` seconds of tuning are earned back.

    A round launches the best of every row that was measured at this M once, ``round`` microseconds in all. Launching
    the fastest provider that brings no tile programs instead, TorchInductor included, takes ``saved`` microseconds
    more; where such a provider is the best itself, tuning saves nothing. A GPU busy with such rounds alone saves the
    share ``saved / round`` of each hour that it serves, and has earned the tuning back after::

        GPU-hours = tune_s / 3600 * round / saved

    Real steps launch some ops more often than others, and mix sizes of M, so this is an estimate.
    """
    sizes = sorted({row.measured_at for row in rows if is_measured(row.measured_at, row.best.time_us)})
    return tuple(_payback([row for row in rows if row.measured_at == size], size, tune_s) for size in sizes)


def saved_us(row: Row) -> float | None:
    """What a launch of this row saves beside its best provider without tile programs; None if there is no such time."""
    rivals = [
        each.time_us for each in (row.best, *row.runners_up) if each.provider not in TILE_PROGRAMS and each.time_us > 0
    ]
    return max(0.0, min(rivals) - row.best.time_us) if rivals else None


def _payback(rows: Sequence[Row], num_tokens: int, tune_s: float) -> Payback:
    measured = [row for row in rows if is_measured(row.measured_at, row.best.time_us)]
    compared = [(row, saved) for row in measured if (saved := saved_us(row)) is not None]
    round_us = sum(row.best.time_us for row, _ in compared)
    saved = sum(saved for _, saved in compared)
    return Payback(
        num_tokens=num_tokens,
        rows=len(compared),
        without_rival=len(measured) - len(compared),
        round_us=round_us,
        saved_us=saved,
        gpu_hours=tune_s / 3600 * round_us / saved if saved > 0 and tune_s > 0 else None,
    )
