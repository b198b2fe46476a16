"""What tuning a plan will take, before anything is compiled or timed: counts, and times by rule of thumb."""

from __future__ import annotations

from dataclasses import dataclass

from parhelion.ops.tile_programs import all_candidates
from parhelion.tuning.passes import Effort
from parhelion.tuning.plan import Plan, PlannedRow, grouped

COMPILE_S = 0.6
"""Processor seconds of a candidate: generating its code and compiling one or two programs."""

TRIAL_S = 0.05
"""Seconds of the device for a trial in the first round (loading, capturing a graph, a few replays): a guess."""

ROUNDS_FACTOR = 2.0
"""What the later rounds of the search and the refinements add to the first round."""


@dataclass(frozen=True)
class PlannedOp:
    """The rows of one contract.

    Attributes:
        contract: its key.
        weight: how often a step calls it.
        buckets: of M.
        candidates: of a row, the most of all its rows.
        rivals: other providers.
    """

    op: str
    contract: str
    weight: int
    buckets: tuple[int, ...]
    candidates: int
    rivals: tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    """What it would take to search every row, with none that is good enough at once.

    Attributes:
        num_rows: in all; ``num_groups`` of those that share programs.
        num_compiled: candidates, and ``num_trials`` of them and of rivals on the device.
        compile_s: ``num_compiled * COMPILE_S / cores``.
        gpu_s: ``num_trials * TRIAL_S * ROUNDS_FACTOR``.
        formula: the same in words.
    """

    ops: tuple[PlannedOp, ...]
    num_rows: int
    num_groups: int
    num_compiled: int
    num_trials: int
    compile_s: float
    gpu_s: float
    formula: str


def estimate(plan: Plan, effort: Effort, cores: int) -> Estimate:
    """Of a plan.

    Args:
        cores: that compile.
    """
    counts = {row: _num_candidates(row, plan, effort) for row in plan.rows}
    groups = grouped(plan.rows, lambda row: row)
    num_compiled = sum(max(counts[row] for row in group) for group in groups)
    num_trials = sum(counts[row] + len(row.rivals) for row in plan.rows)
    contracts = dict.fromkeys(row.contract for row in plan.rows)
    ops = []
    for contract in contracts:
        own = [row for row in plan.rows if row.contract == contract]
        ops.append(
            PlannedOp(
                contract.name,
                contract.key(),
                own[0].weight,
                tuple(row.bucket for row in own),
                max(counts[row] for row in own),
                own[0].rivals,
            )
        )
    return Estimate(
        ops=tuple(ops),
        num_rows=len(plan.rows),
        num_groups=len(groups),
        num_compiled=num_compiled,
        num_trials=num_trials,
        compile_s=num_compiled * COMPILE_S / cores,
        gpu_s=num_trials * TRIAL_S * ROUNDS_FACTOR,
        formula=(
            f"{num_compiled} candidates x {COMPILE_S:g} s / {cores} cores of compiling, beside "
            f"{num_trials} trials x {TRIAL_S:g} s x {ROUNDS_FACTOR:g} for later rounds on the device; rows that are "
            "good enough at once take neither"
        ),
    )


def _num_candidates(row: PlannedRow, plan: Plan, effort: Effort) -> int:
    found = all_candidates(row.contract, row.bucket, plan.target)
    return min(effort.candidates(row.contract, plan.target), len(found))
