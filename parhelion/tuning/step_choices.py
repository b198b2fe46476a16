"""Who serves each row, chosen in the steps of the model among the few that are fastest by themselves."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from parhelion.ops.contract import Contract
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.registry import needs_single_rows
from parhelion.ops.ways import OfAnyRows, Way, quickest, sum_us
from parhelion.packs.format import TILE_PROGRAMS, BlockTime
from parhelion.tuning.built_programs import BuiltPrograms
from parhelion.tuning.jobs import Outcome, Trial
from parhelion.tuning.journal import Journal, Step
from parhelion.tuning.model_calls import TunedModel, called_contracts, layer_ways, shared_layer_ways
from parhelion.tuning.passes import shortlist
from parhelion.tuning.programs import plain
from parhelion.tuning.row_state import Choice, RowState
from parhelion.tuning.step_tuning import Shortlist, StepJob, StepResult

STEP_S = 30.0
"""Of the steps of one size of M, at most."""

NEAR = 1.25
"""A way is tuned too if its launches add up to no more than this times the least sum: they overlap, in some ways more
than in others.
"""

StepTuner = Callable[[StepJob], StepResult | str]
"""Chooses among shortlists in a step of the model, or says why it cannot."""

Few = tuple[RowState, list[Outcome]]
"""A row and its shortlist."""


@dataclass(frozen=True)
class _Measured:
    """A block that was measured, and with which choices."""

    block: BlockTime
    choices: Mapping[RowState, Choice]


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
        self._compared = shared_layer_ways(model, target)
        self._called = called_contracts(model, target)
        self._programs = programs
        self._journal = journal
        self._elapsed = elapsed
        self._measured: list[_Measured] = []

    def choose(self, open_rows: Sequence[RowState], beside: Sequence[RowState], deadline_s: float) -> list[str]:
        """Choose for all rows, bucket by bucket, until a time on the clock. Returns what went wrong, in words.

        Several ways to compute a block are tuned where any may be the quickest; what serves a row is what was chosen
        for the one that is.

        Args:
            open_rows: may be served by whoever is best.
            beside: those of which that is settled. Where blocks call no others, their times are known.
        """
        notes: list[str] = []
        in_blocks = set().union(*self._called)
        rows = [*open_rows, *beside]
        known = {row.bucket for row in beside} - {row.bucket for row in open_rows if row.contract in in_blocks}
        buckets = sorted({row.bucket for row in rows} - known)
        for number, bucket in enumerate(buckets):
            here = {row.contract: row for row in rows if row.bucket == bucket and row.fastest is not None}
            few = [(row, shortlist(row)) for row in here.values()]
            times = _Times(here, {})
            near = self._near(bucket, times)
            if len(near) < 2 and all(len(each) < 2 for _, each in few):
                continue
            left_s = deadline_s - self._elapsed()
            if left_s <= 0:
                return [*notes, f"the budget ended before the steps of M from {bucket} on were tuned"]
            end_s = self._elapsed() + min(STEP_S, left_s / (len(buckets) - number))
            # Of a part of the rows no block is whole: they are chosen in the way that is taken without such times.
            ways = near or [quickest(self._compared, bucket, times)]
            steps: dict[int, Step] = {}
            measured: list[_Measured] = []
            for position, way in enumerate(ways):
                budget_s = max(0.0, end_s - self._elapsed()) / (len(ways) - position)
                steps[way] = step = self._step(bucket, few, way, budget_s)
                if step.choices is None:
                    notes.append(f"the step of M = {bucket} was not tuned: {step.problem}")
                elif near and step.block_us is not None:
                    times.blocks[tuple(self._ways[way])] = step.block_us
                    measured.append(_Measured(self._block(bucket, way, step.block_us), _chosen(few, step)))
            # Of what only other steps call, and a first block, the way that these are computed in; then the way itself.
            for of_rows in (OfAnyRows(times), times):
                taken = steps.get(quickest(self._compared, bucket, of_rows))
                for row, choice in (_chosen(few, taken) if taken is not None else {}).items():
                    row.chosen = choice
            self._measured += measured
        return notes

    def blocks(self) -> tuple[BlockTime, ...]:
        """What was measured of whole blocks, with nothing in them that turned out unable to serve."""
        return tuple(
            each.block
            for each in self._measured
            if not any(choice in row.problems for row, choice in each.choices.items())
        )

    def _near(self, bucket: int, times: _Times) -> list[int]:
        """The ways of whose calls all are known, and that may be the quickest; the least sum first, each once."""
        sums: dict[int, float] = {}
        for way, contracts in enumerate(self._ways):
            is_new = contracts not in self._ways[:way]
            if is_new and all(times.time_us(each, bucket) is not None for each in self._called[way]):
                sums[way] = sum_us(Counter(contracts), bucket, times) or 0.0
        # Steps of other rows than single tokens, and a first block, are computed in a way for any rows.
        of_any_rows = {way: us for way, us in sums.items() if not needs_single_rows(self._ways[way])}
        near = {*_near_least(sums), *_near_least(of_any_rows)}
        return sorted(near, key=lambda way: sums[way])

    def _block(self, bucket: int, way: int, block_us: float) -> BlockTime:
        return BlockTime(tuple(contract.key() for contract in self._ways[way]), bucket, block_us)

    def _step(self, bucket: int, few: Sequence[Few], way: int, budget_s: float) -> Step:
        identity = _identity(few, way)
        known = self._journal.step(bucket, identity)
        if known is not None and (known.choices is None or known.block_us is not None):
            return known
        requests = [row.request(each.config) for row, own in few for each in own if each.provider in TILE_PROGRAMS]
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
        now = self._elapsed()
        if isinstance(result, str):
            step = Step(bucket, identity, None, result, now - since, now)
        else:
            block_us = result.after_us / result.num_layers
            step = Step(bucket, identity, result.choices, None, now - since, now, block_us)
        self._journal.add(step)
        return step


@dataclass(frozen=True)
class _Times:
    """What is known at one bucket: of rows by themselves, and of whole blocks so far."""

    rows: Mapping[Contract, RowState]
    blocks: dict[tuple[Contract, ...], float]

    def time_us(self, contract: Contract, num_tokens: int) -> float | None:
        row = self.rows.get(contract)
        return None if row is None else row.time_us

    def block_us(self, way: Way, num_tokens: int) -> float | None:
        return self.blocks.get(tuple(way))


def _near_least(sums: Mapping[int, float]) -> list[int]:
    return [way for way in sums if sums[way] <= NEAR * min(sums.values())]


def _chosen(few: Sequence[Few], step: Step) -> dict[RowState, Choice]:
    """Who serves each row that the step calls."""
    found: dict[RowState, Choice] = {}
    for row, each in few:
        position = (step.choices or {}).get(row.contract.key())
        if position is not None:
            found[row] = each[position].provider, each[position].config
    return found


def _identity(few: Sequence[Few], way: int) -> str:
    named = [way, *_named(few)] if way else _named(few)
    return hashlib.sha256(msgspec.json.encode(named, order="sorted")).hexdigest()


def _named(few: Sequence[Few]) -> list[Any]:
    return [[row.contract.key(), [[each.provider, plain(each.config)] for each in own]] for row, own in few]
