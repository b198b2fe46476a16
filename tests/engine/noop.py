"""A worker that computes nothing, for tests of what goes on around it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from parhelion.engine.core import EngineCore
from parhelion.engine.messages import AddRequest
from parhelion.engine.step_result import StepResult
from parhelion.scheduler import SchedulerConfig, StepPlan

VOCAB = 97


def token_of(request_id: str, output_index: int) -> int:
    """The token that stands for a request's output; never 0 or 1."""
    return 2 + (sum(request_id.encode()) * 31 + output_index * 7) % (VOCAB - 2)


class NoOpExecutor:
    """Answers each sampling row with ``token_of``.

    Attributes:
        plans: executed so far, in order.
        threads: names of the threads that executed them.
        fail_at: step that raises, or None.
        before: called with each plan on the worker's thread.
        second_step: set as soon as step 1 is executed.
    """

    def __init__(self) -> None:
        self.graphs = None
        self.plans: list[StepPlan] = []
        self.threads: set[str] = set()
        self.fail_at: int | None = None
        self.before: Callable[[StepPlan], None] = lambda plan: None
        self.second_step = threading.Event()

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> StepResult:
        self.before(plan)
        self.plans.append(plan)
        self.threads.add(threading.current_thread().name)
        if plan.step == 1:
            self.second_step.set()
        if plan.step == self.fail_at:
            raise RuntimeError("the device is gone\nand its stack with it")
        assert [request.request_id for request in admitted] == [item.request_id for item in plan.admissions]
        tokens = [token_of(row.request_id, row.output_index) for row in plan.rows if row.samples]
        return StepResult(tokens, [None] * len(tokens), [])


def make_core(
    executor: NoOpExecutor, *, overlap: bool = True, max_queue_len: int = 100, num_blocks: int = 64
) -> EngineCore:
    """A core with four slots, a budget of 16 tokens a step and blocks of 4 tokens."""
    config = SchedulerConfig(
        num_blocks=num_blocks,
        block_size=4,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        max_model_len=64,
        max_queue_len=max_queue_len,
    )
    return EngineCore(config, executor, overlap=overlap)


def assert_empty(core: EngineCore) -> None:
    """Nothing runs, nothing waits, no block is referred to."""
    core.check_integrity()
    stats = core.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_blocks_in_use) == (0, 0, 0)
    assert not core.has_work
