"""Who serves each row, chosen in the steps of the model among the few that are fastest by themselves."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from parhelion.layers.alternatives import quickest
from parhelion.ops.contract import Contract
from parhelion.ops.gemm.target import GemmTarget
from parhelion.tuning.built_programs import BuiltPrograms
from parhelion.tuning.jobs import Outcome, Trial
from parhelion.tuning.journal import Journal, Step
from parhelion.tuning.model_calls import TunedModel, layer_ways
from parhelion.tuning.passes import shortlist
from parhelion.tuning.plan import HELION
from parhelion.tuning.programs import plain
from parhelion.tuning.row_state import RowState
from parhelion.tuning.step_tuning import Shortlist, StepJob, StepResult

STEP_S = 30.0
"""Of one step, at most."""

StepTuner = Callable[[StepJob], StepResult | str]
"""Chooses among shortlists in a step of the model, or says why it cannot."""

Few = tuple[RowState, list[Outcome]]
"""A row and its shortlist."""


class StepChoices:
    """Has steps tuned, each once: what the journal knows is not repeated.

    Args:
        tuner: who does it.
        model: whose steps. target: as configs know it.
        programs, journal: as everywhere.
        elapsed: seconds since the session began.
    """

    def __init__(
        self,
        tuner: StepTuner,
        model: TunedModel,
        target: GemmTarget,
        programs: BuiltPrograms,
        journal: Journal,
        elapsed: Callable[[], float],
    ) -> None:
        self._tuner = tuner
        self._model = model
        self._ways = layer_ways(model, target)
        self._programs = programs
        self._journal = journal
        self._elapsed = elapsed

    def choose(self, rows: Sequence[RowState], deadline_s: float) -> list[str]:
        """Choose for all rows, bucket by bucket, until a time on the clock. Returns what went wrong, in words."""
        notes: list[str] = []
        buckets = sorted({row.bucket for row in rows})
        for number, bucket in enumerate(buckets):
            here = {row.contract: row for row in rows if row.bucket == bucket and row.fastest is not None}
            few = [(row, shortlist(row)) for row in here.values()]
            if all(len(each) < 2 for _, each in few):
                continue
            left_s = deadline_s - self._elapsed()
            if left_s <= 0:
                return [*notes, f"the budget ended before the steps of M from {bucket} on were tuned"]
            way = quickest(self._ways, bucket, functools.partial(_time_us, here))
            step = self._step(bucket, few, way, min(STEP_S, left_s / (len(buckets) - number)))
            if step.choices is None:
                notes.append(f"the step of M = {bucket} was not tuned: {step.problem}")
                continue
            for row, each in few:
                position = step.choices.get(row.contract.key())
                if position is not None:
                    row.chosen = (each[position].provider, each[position].config)
        return notes

    def _step(self, bucket: int, few: Sequence[Few], way: int, budget_s: float) -> Step:
        identity = _identity(few, way)
        known = self._journal.step(bucket, identity)
        if known is not None:
            return known
        requests = [row.request(each.config) for row, own in few for each in own if each.provider == HELION]
        programs = self._programs.programs(requests)
        shortlists = tuple(
            Shortlist(
                row.contract,
                tuple(Trial(each.provider, each.config, programs.get(row.request(each.config), ())) for each in own),
                row.time_us or 0.0,
            )
            for row, own in few
        )
        since = self._elapsed()
        result = self._tuner(StepJob(self._model, bucket, shortlists, budget_s, way=way))
        choices, problem = (None, result) if isinstance(result, str) else (result.choices, None)
        now = self._elapsed()
        step = Step(bucket, identity, choices, problem, now - since, now)
        self._journal.add(step)
        return step


def _time_us(rows: Mapping[Contract, RowState], contract: Contract, num_tokens: int) -> float | None:
    row = rows.get(contract)
    return None if row is None else row.time_us


def _identity(few: Sequence[Few], way: int) -> str:
    named = [way, *_named(few)] if way else _named(few)
    return hashlib.sha256(msgspec.json.encode(named, order="sorted")).hexdigest()


def _named(few: Sequence[Few]) -> list[Any]:
    return [[row.contract.key(), [[each.provider, plain(each.config)] for each in own]] for row, own in few]
