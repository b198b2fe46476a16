"""An engine whose layers are divided among stages: which layers a stage has, and steps that another process completes.

Rank 0, in the engine's process beside the scheduler, is of the first stage. The last one samples, and sends what it
sampled over the road on which ranks say how they are; so waiting for a step and noticing that a rank has ended are one
thing. The ids come back to the stages before it with the plan of the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from parhelion.distributed.model_size import ModelSize
from parhelion.distributed.stages import Stage, divide_layers
from parhelion.engine.graphs import GraphCache
from parhelion.engine.messages import AddRequest
from parhelion.engine.step_result import PendingStep, StepResult
from parhelion.models.config import ModelConfig
from parhelion.quantization import UNQUANTIZED, QuantScheme
from parhelion.scheduler import StepPlan


class LaterStages(Protocol):
    """The other ranks, those that complete a step among them."""

    def result_of(self, step: int) -> StepResult:
        """What a step produced; waits for it."""
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
    """

    def __init__(self, first: FirstStage, others: LaterStages) -> None:
        self._first = first
        self._others = others

    @property
    def graphs(self) -> GraphCache | None:
        """This rank's captured graphs, if any are used."""
        return self._first.graphs

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> PendingStep:
        """See ``Worker``; returns once the step has left this stage, or its device has been handed it.

        Raises:
            EngineDeadError: a rank has ended.
        """
        self._first.execute(plan, admitted)
        return _StepElsewhere(plan.step, self._others)


class _StepElsewhere:
    """A step that the later stages complete."""

    def __init__(self, step: int, others: LaterStages) -> None:
        self._step = step
        self._others = others

    def wait(self) -> StepResult:
        """The step's result. Once."""
        return self._others.result_of(self._step)


def stage_of(model: ModelConfig, scheme: QuantScheme, head_scheme: QuantScheme, pp: int, number: int) -> Stage:
    """A stage of a model that is divided into ``pp`` by the bytes of weights that a step reads: those of the layers,
    and for the last stage those of the output head.

    Raises:
        ConfigError: there are more stages than layers.
    """
    size = size_of(model, scheme, head_scheme)
    return divide_layers(model.num_layers, pp, size.head_bytes / size.layer_bytes)[number]


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
