"""Tuning the step and not the kernel: of each row's best few configs, those that are fastest among their neighbours.

A kernel alone has the caches and the memory bus to itself; in a step it follows one and precedes another. So blocks of
the model run as one CUDA graph, and contract after contract, the costliest first, the alternatives are tried in it
(coordinate descent).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from parhelion.errors import first_line
from parhelion.ops.contract import Contract
from parhelion.ops.kernel_timer import Timing, make_room, time_launcher
from parhelion.ops.pack_kernels import Load
from parhelion.platform.driver import load_function
from parhelion.tuning.jobs import Trial
from parhelion.tuning.layer_stack import ChosenResolver, LayerStack, layers_beyond_l2
from parhelion.tuning.model_calls import TunedModel
from parhelion.tuning.programmatic_twins import is_programmatic
from parhelion.tuning.timing_jobs import launcher_of

GAIN = 0.003
"""What an alternative must save of the step's time: less is noise."""

PASSES = 2

STEP_TIMING = Timing(rounds=10, warmup=2)

_LAST_ROUNDS = 3
"""How often the first choice and the last one are measured in turn, when all is done."""

Choice = Mapping[Contract, int]
"""Which of its shortlist's trials serves each contract."""

TimeStep = Callable[[Choice], float]
"""Microseconds of a step."""


@dataclass(frozen=True)
class Shortlist:
    """What may serve a contract.

    Attributes:
        contract: which.
        trials: the one that is fastest by itself first.
        time_us: of one launch of that.
    """

    contract: Contract
    trials: tuple[Trial, ...]
    time_us: float


@dataclass(frozen=True)
class StepJob:
    """A step to be tuned.

    Attributes:
        model: whose.
        num_tokens: M.
        shortlists: of the contracts that have been tuned. Those that the step does not call are left as they are.
        budget_s: seconds after which nothing more is tried.
        num_layers: blocks; None for enough to exceed the L2 cache.
        way: which of the plans that a GPU may serve with (``layers.fusions.ON_GPU``).
    """

    model: TunedModel
    num_tokens: int
    shortlists: tuple[Shortlist, ...]
    budget_s: float = 30.0
    num_layers: int | None = None
    way: int = 0


@dataclass(frozen=True)
class StepResult:
    """What came of it.

    Attributes:
        choices: by ``Contract.key()``, of the contracts that the step calls, the position in the shortlist.
        before_us, after_us: microseconds of the blocks with the first of every shortlist, and with the choices,
            measured in turn.
        num_layers: blocks that they were measured on.
        evaluations: how often a step was measured.
    """

    choices: dict[str, int]
    before_us: float
    after_us: float
    num_layers: int
    evaluations: int


def tune_step(job: StepJob, device: torch.device, load: Load = load_function) -> StepResult:
    """Build the blocks here and choose.

    Args:
        load: brings a binary onto the device.

    Raises whatever the first trials of the shortlists raise; an alternative that fails is not chosen.
    """
    if device.type == "cuda":
        make_room(device)
    num_layers = job.num_layers or layers_beyond_l2(job.model, device)
    stack = LayerStack(job.model, job.num_tokens, device, num_layers, way=job.way)
    called = [each for each in job.shortlists if each.contract in stack.contracts]
    launchers = {
        each.contract: [launcher_of(each.contract, trial, device, load) for trial in each.trials] for each in called
    }

    def time_step(choice: Choice) -> float:
        given = {contract: own[choice[contract]] for contract, own in launchers.items()}
        run = stack.bound(ChosenResolver(device, given))
        return 1e6 * time_launcher(run, [()], device, STEP_TIMING).median

    by_cost = sorted(called, key=lambda each: -each.time_us * stack.contracts.count(each.contract))
    descent = Descent(time_step, time.monotonic() + job.budget_s)
    sizes = {each.contract: len(each.trials) for each in by_cost}
    choices = descent.best(sizes, [start_with(by_cost, programmatic=False), start_with(by_cost, programmatic=True)])
    before_us, after_us, choices = descent.settled(choices)
    named = {contract.key(): position for contract, position in choices.items()}
    return StepResult(named, before_us, after_us, num_layers, descent.evaluations)


def start_with(shortlists: Sequence[Shortlist], *, programmatic: bool) -> Choice:
    """Everything programmatic that can be, or nothing: one such kernel among others gains little, as each must let the
    next one start.
    """

    def first(each: Shortlist) -> int:
        fitting = (i for i, trial in enumerate(each.trials) if is_programmatic(trial.config) == programmatic)
        return next(fitting, 0)

    return {each.contract: first(each) for each in shortlists}


class Descent:
    """Coordinate descent over choices, with a clock.

    Args:
        time_step: measures.
        deadline: by the monotonic clock; after it nothing more is tried.

    Attributes:
        evaluations: how often it was measured.
        problems: alternatives that failed, and why.
    """

    def __init__(self, time_step: TimeStep, deadline: float) -> None:
        self._time_step = time_step
        self._deadline = deadline
        self.evaluations = 0
        self.problems: list[str] = []

    def best(self, sizes: Mapping[Contract, int], starts: Sequence[Choice] = ()) -> dict[Contract, int]:
        """The choices that are left when no alternative gains any more, or after ``PASSES``.

        Args:
            sizes: how many alternatives each contract has, in the order in which they are tried.
            starts: where to begin if that is faster than with the first of everything.
        """
        current = dict.fromkeys(sizes, 0)
        best_us = self._time(current)
        for start in starts:
            if dict(start) != current:
                current, best_us = self._better(current, best_us, dict(start))
        for _ in range(PASSES):
            before = dict(current)
            for contract, size in sizes.items():
                others = [position for position in range(size) if position != current[contract]]
                for position in others:
                    if time.monotonic() < self._deadline:
                        current, best_us = self._better(current, best_us, {**current, contract: position})
            if current == before:
                break
        return current

    def settled(self, choices: dict[Contract, int]) -> tuple[float, float, dict[Contract, int]]:
        """Microseconds with the first of everything and with the choices, in turn, and the faster of the two."""
        first = dict.fromkeys(choices, 0)
        if choices == first:
            microseconds = median([self._time(first) for _ in range(_LAST_ROUNDS)])
            return microseconds, microseconds, first
        pairs = [(self._time(first), self._time(choices)) for _ in range(_LAST_ROUNDS)]
        before_us, after_us = (median(times) for times in zip(*pairs, strict=True))
        return (before_us, after_us, choices) if after_us < before_us else (before_us, before_us, first)

    def _better(
        self, current: dict[Contract, int], best_us: float, other: dict[Contract, int]
    ) -> tuple[dict[Contract, int], float]:
        """The faster of two choices, and its time."""
        if not _gains(self._time_or_never(other), best_us):
            return current, best_us
        # Both again: luck does not come twice.
        best_us, other_us = self._time(current), self._time_or_never(other)
        return (other, other_us) if _gains(other_us, best_us) else (current, best_us)

    def _time(self, choice: Choice) -> float:
        self.evaluations += 1
        return self._time_step(choice)

    def _time_or_never(self, choice: Choice) -> float:
        try:
            return self._time(choice)
        # An alternative may fail in any way.
        except Exception as error:
            self.problems.append(first_line(error))
            return math.inf


def _gains(other_us: float, best_us: float) -> bool:
    return other_us < (1 - GAIN) * best_us
