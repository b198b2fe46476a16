"""An engine whose layers are divided among stages: which layers a stage has, and steps that another process completes.

Rank 0, in the engine's process beside the scheduler, is of the first stage. The last one samples, and sends what it
sampled over the road on which ranks say how they are; so waiting for a step and noticing that a rank has ended are one
thing. The ids come back to the first stage with the plan of the next step, or behind it: a step may be planned, and
told to all ranks, while its tokens are being sampled.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from parhelion.distributed.model_size import ModelSize
from parhelion.distributed.stages import Stage
from parhelion.engine.device.graphs import GraphCache
from parhelion.engine.messages import AddRequest
from parhelion.engine.ranks.awaited_tokens import AwaitedTokens
from parhelion.engine.ranks.processes import CHECK_S
from parhelion.engine.step_result import PendingStep, StepResult
from parhelion.models.config import ModelConfig
from parhelion.quantization import UNQUANTIZED, QuantScheme
from parhelion.scheduler import StepPlan

HAND_OVER_S = 0.01
"""How long others may wait until a device has been handed a step: longer than that takes, but for captures."""


class LaterStages(Protocol):
    """The other ranks, those that complete a step among them."""

    def result_of(self, step: int) -> StepResult:
        """What a step produced; waits for it."""
        ...

    def tell(self, step: int, token_ids: Sequence[int]) -> None:
        """Let them know what a step has sampled, row after row."""
        ...

    def check(self) -> None:
        """Raise what ended one of them, if any has ended."""
        ...


class FirstStage(Protocol):
    """The part of a step that this process computes."""

    @property
    def graphs(self) -> GraphCache | None: ...

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> PendingStep: ...


class PipelineWorker:
    """Runs the first stage of every step.

    Args:
        first: this rank's worker.
        others: where steps go from there.
        num_stages: in all.
        is_quick: a step takes the first stage no longer than its device is handed it. So one that has waited for tokens
            goes before what else this process does with them.
    """

    def __init__(self, first: FirstStage, others: LaterStages, num_stages: int, is_quick: bool = False) -> None:
        self._first = first
        self._others = others
        self._awaited = AwaitedTokens(num_stages)
        self._is_quick = is_quick
        self._changed = threading.Condition()
        self._waits_for: int | None = None
        self._failed: Exception | None = None

    @property
    def graphs(self) -> GraphCache | None:
        """This rank's captured graphs, if any are used."""
        return self._first.graphs

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> PendingStep:
        """See ``Worker``; returns once the step has left this stage, or its device has been handed it.

        Raises:
            EngineDeadError: a rank has ended.
        """
        with self._failing():
            self._first.execute(self._with_tokens(plan), admitted)
        with self._changed:
            self._waits_for = None
            self._changed.notify_all()
        return _StepElsewhere(plan.step, self)

    def _with_tokens(self, plan: StepPlan) -> StepPlan:
        """The plan, once all of its first tokens are known."""
        with self._changed:
            self._awaited.note(plan)
            self._waits_for = plan.awaits
            while not self._awaited.is_known(plan):
                if self._failed is not None:
                    raise self._failed
                if not self._changed.wait(CHECK_S):
                    self._others.check()
            return self._awaited.put_into(plan)

    def complete(self, step: int) -> StepResult:
        """What a step produced, in the order of their planning; waits for it. In another thread than ``execute``."""
        if self._failed is not None:
            raise self._failed
        with self._failing():
            result = self._others.result_of(step)
            self._others.tell(step, result.token_ids)
        with self._changed:
            self._awaited.take(step, result.token_ids)
            self._changed.notify_all()
            if self._is_quick:
                self._changed.wait_for(lambda: self._waits_for != step, HAND_OVER_S)
        return result

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """What is raised within ends those who wait as well."""
        try:
            yield
        except Exception as error:
            with self._changed:
                self._failed = self._failed or error
                self._waits_for = None
                self._changed.notify_all()
            raise


class _StepElsewhere:
    """A step that the later stages complete."""

    def __init__(self, step: int, worker: PipelineWorker) -> None:
        self._step = step
        self._worker = worker

    def wait(self) -> StepResult:
        """The step's result. Once."""
        return self._worker.complete(self._step)


def stage_of(model: ModelConfig, scheme: QuantScheme, head_scheme: QuantScheme, pp: int, number: int) -> Stage:
    """One of ``pp`` stages of a model; see ``ModelSize.stages``.

    Raises:
        ConfigError: there are more stages than layers.
    """
    return size_of(model, scheme, head_scheme).stages(pp)[number]


def size_of(model: ModelConfig, scheme: QuantScheme, head_scheme: QuantScheme = UNQUANTIZED) -> ModelSize:
    """A model's dimensions, in a quantization of its layers and one of its output head."""
    return ModelSize(
        model.architecture,
        model.num_layers,
        model.hidden_size,
        model.intermediate_size,
        model.num_heads,
        model.num_kv_heads,
        model.head_dim,
        model.vocab_size,
        model.tie_word_embeddings,
        scheme,
        head_scheme,
    )
