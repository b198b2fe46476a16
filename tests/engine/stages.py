"""Stages of a pipeline in one process: the same workers as in several, and roads between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from parhelion.engine.messages import AddRequest
from parhelion.engine.ranks.pipeline_parallel import PipelineWorker
from parhelion.engine.step_result import NOTHING, PendingStep, StepResult
from parhelion.scheduler import StepPlan


class Road:
    """Stands in for a stage's ``StageLinks``: what one stage sends, the next one receives, and may write to."""

    def __init__(self, before: deque[torch.Tensor], behind: deque[torch.Tensor]) -> None:
        self._before, self._behind = before, behind

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        tensor = self._before.popleft()
        assert (tensor.shape, tensor.dtype) == (shape, dtype)
        assert tensor.is_contiguous()
        return tensor

    def send(self, tensor: torch.Tensor) -> None:
        self._behind.append(tensor)


def roads_between(num_stages: int) -> list[Any]:
    """Of each stage."""
    between = [deque[torch.Tensor]() for _ in range(num_stages + 1)]
    return [Road(*between[stage : stage + 2]) for stage in range(num_stages)]


class Stages:
    """All stages of a pipeline, around a ``PipelineWorker``.

    Args:
        workers: of the stages.
        late: the last stage computes a step when that is waited for. So later steps leave the stages before it
            meanwhile, as far as they are under way; but threads must not race where ranks share layers.
    """

    graphs = None

    def __init__(self, workers: Sequence[Any], late: bool) -> None:
        self.workers = workers
        self._late = late
        self._left: dict[int, PendingStep] = {}

    def worker(self) -> PipelineWorker:
        """As the engine core has it."""
        return PipelineWorker(self, self, len(self.workers))

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> PendingStep:
        for worker in self.workers[:-1]:
            assert worker.execute(plan, admitted) is NOTHING
        last = self.workers[-1]
        self._left[plan.step] = _LastStage(last, plan, admitted) if self._late else last.execute(plan, admitted)
        return NOTHING

    def result_of(self, step: int) -> StepResult:
        return self._left.pop(step).wait()

    def tell(self, step: int, token_ids: Sequence[int]) -> None: ...

    def check(self) -> None: ...


class _LastStage:
    def __init__(self, worker: Any, plan: StepPlan, admitted: Sequence[AddRequest]) -> None:
        self._worker, self._plan, self._admitted = worker, plan, admitted

    def wait(self) -> StepResult:
        result: StepResult = self._worker.execute(self._plan, self._admitted).wait()
        return result
