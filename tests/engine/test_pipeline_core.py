"""The engine core before a pipeline that computes nothing: steps under way, aborts, the end, failures."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from parhelion.engine.core import EngineCore
from parhelion.engine.messages import AddRequest
from parhelion.engine.ranks.pipeline_parallel import PipelineWorker
from parhelion.engine.step_result import StepResult
from parhelion.errors import EngineDeadError
from parhelion.scheduler import SchedulerConfig, StepPlan

from .noop import NoOpExecutor, assert_empty, token_of
from .requests import add_request


class LaterStages:
    """Stages behind the first. They complete a step only once as many are under way as there are stages, or no more
    can be.

    Attributes:
        most_under_way: steps that had left the first stage when one was completed, at most.
        most_told: steps that had been planned by then and were not over, at most.
        closed: whether the core has ended them.
    """

    def __init__(self, num_stages: int) -> None:
        self.first = NoOpExecutor()
        self.first.before = self._left
        self.num_expected = num_stages
        self.most_under_way = self.most_told = 0
        self.told: list[int] = []
        self.known: list[int] = []
        self.closed = False
        self.ended: Exception | None = None
        self._results: dict[int, StepResult] = {}
        self._changed = threading.Condition()

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> None:
        self.told.append(plan.step)

    def _left(self, plan: StepPlan) -> None:
        tokens = [token_of(row.request_id, row.output_index) for row in plan.rows if row.samples]
        with self._changed:
            self._results[plan.step] = StepResult(tokens, [None] * len(tokens), [])
            self._changed.notify()

    def result_of(self, step: int) -> StepResult:
        if self.ended is not None:
            raise self.ended
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._results) >= self.num_expected, timeout=10)
            self.most_under_way = max(self.most_under_way, len(self._results))
            self.most_told = max(self.most_told, self.told[-1] + 1 - step)
            return self._results.pop(step)

    def tell(self, step: int, token_ids: Sequence[int]) -> None:
        self.known.append(step)

    def check(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def core_before(stages: LaterStages, num_stages: int, overlap: bool = True) -> EngineCore:
    config = SchedulerConfig(
        num_blocks=64,
        block_size=4,
        max_num_seqs=8,
        max_num_batched_tokens=32,
        max_model_len=64,
        num_groups=num_stages,
    )
    return EngineCore(config, PipelineWorker(stages.first, stages, num_stages), overlap=overlap, peers=stages)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("num_stages", [2, 3])
def test_as_many_steps_are_under_way_as_there_are_stages_and_one_more_is_planned(
    num_stages: int, overlap: bool
) -> None:
    stages = LaterStages(num_stages)
    core = core_before(stages, num_stages, overlap)
    tokens: dict[str, list[int]] = {f"r{index}/0": [] for index in range(6)}
    for name in tokens:
        core.add(add_request(name, [2, 3, 4], max_tokens=5))
    # Each of the groups has five steps: but the last of each, all of them find the pipeline full.
    for _ in range(4 * num_stages):
        for token in core.step():
            tokens[token.request_id].append(token.token_id)
    stages.num_expected = 1
    while core.has_work:
        for token in core.step():
            tokens[token.request_id].append(token.token_id)
    assert stages.most_under_way == num_stages
    assert stages.most_told == num_stages + overlap
    assert tokens == {name: [token_of(name, index) for index in range(5)] for name in tokens}
    assert stages.told == [plan.step for plan in stages.first.plans] == list(range(5 * num_stages))
    for row in (row for plan in stages.first.plans for row in plan.rows if row.output_index):
        assert row.first_token == token_of(row.request_id, row.output_index - 1)
    groups = [frozenset(row.request_id for row in plan.rows) for plan in stages.first.plans]
    assert groups == groups[:num_stages] * 5
    assert frozenset.union(*groups[:num_stages]) == tokens.keys()
    assert_empty(core)
    core.close()
    assert stages.closed


def test_an_abort_with_steps_under_way_drops_what_comes_back() -> None:
    stages = LaterStages(2)
    core = core_before(stages, 2)
    for name in ("gone/0", "stays/0"):
        core.add(add_request(name, [2, 3, 4], max_tokens=3))
    assert [token.request_id for token in core.step()] == ["gone/0"]
    assert core.abort("stays/0")
    core.check_integrity()
    stages.num_expected = 1
    while core.has_work:
        assert {token.request_id for token in core.step()} <= {"gone/0"}
    assert_empty(core)
    core.close()


def test_what_others_were_told_is_computed_before_the_end() -> None:
    stages = LaterStages(2)
    core = core_before(stages, 2)
    for name in ("a/0", "b/0"):
        core.add(add_request(name, [2, 3, 4], max_tokens=3))
    core.step()
    stages.num_expected = 1
    core.close()
    assert stages.told == [plan.step for plan in stages.first.plans]


def test_the_end_of_a_later_stage_reaches_the_caller() -> None:
    stages = LaterStages(2)
    core = core_before(stages, 2)
    core.add(add_request("a/0", [2, 3, 4], max_tokens=3))
    stages.ended = EngineDeadError("rank 1 (stage 1) on here (process 2) was killed by SIGKILL")
    with pytest.raises(EngineDeadError, match=r"stage 1.*SIGKILL"):
        core.step()
    # The next step, which was planned already, waits for it no longer.
    core.close()
    assert [plan.step for plan in stages.first.plans] == [0]
    assert stages.told == [0, 1]


def test_a_first_stage_that_fails_ends_what_was_planned_behind_it() -> None:
    stages = LaterStages(2)
    core = core_before(stages, 2)
    for name in ("a/0", "b/0"):
        core.add(add_request(name, [2, 3, 4], max_tokens=3))
    stages.first.fail_at = 1
    stages.num_expected = 1
    core.step()
    with pytest.raises(RuntimeError, match="the device is gone"):
        core.step()
    core.close()
    assert stages.closed
    assert stages.told[-1] > 1
