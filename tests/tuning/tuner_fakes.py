"""A device and a compiler that are none: times follow a known function of the config, and the clock is told."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from parhelion.ops.contract import Contract
from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.target import gemm_target
from parhelion.packs.format import TILE_PROGRAMS, Fingerprint
from parhelion.platform.measure import summarize
from parhelion.tuning.head_calls import TunedHead
from parhelion.tuning.helion_strategy import HelionSearch
from parhelion.tuning.jobs import Outcome, Request, TimingJob, Trial, no_more
from parhelion.tuning.model_calls import TunedModel, tuned_model
from parhelion.tuning.plan import Plan, PlannedRow
from parhelion.tuning.programs import Program, plain
from parhelion.tuning.step_choices import StepTuner
from parhelion.tuning.target import target
from parhelion.tuning.tune import TuneOptions, TuneProgress, TuneResult, tune
from tests.packs import sample

SM_90 = gemm_target("sm_90")
TIMES_FLOOR = 1.15
"""The best there is, beside the floor: so far away that no stop rule is met."""

TimeUs = Callable[[Contract, int, str, Any], float]


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeCompiler:
    """Builds everything, but for what ``fails`` says; ``spills`` says how many bytes, ``count`` how many programs."""

    fails: Callable[[Request], str | None] = lambda request: None
    spills: Callable[[Request], int] = lambda request: 0
    count: Callable[[Request], int] = lambda request: 1
    requests: list[Request] = field(default_factory=list)

    def compile(
        self, requests: Sequence[Request], more: Callable[[], Sequence[Request]] = no_more
    ) -> Iterator[tuple[int, tuple[Program, ...] | str, float]]:
        waiting = list(requests)
        for index, request in enumerate(waiting):
            self.requests.append(request)
            built = tuple(program(request, self.spills(request), each) for each in range(self.count(request)))
            yield index, self.fails(request) or built, 0.5
            waiting.extend(more())


LAUNCH_US = 7.5


@dataclass
class FakeTimer:
    """Each trial takes ``trial_s`` of the clock. After ``interrupt_after`` trials the user has had enough."""

    clock: Clock
    time_us: TimeUs
    trial_s: float = 0.05
    noise: float = 0.003
    problem: Callable[[str, Any, bool], str | None] = lambda provider, config, check: None
    interrupt_after: float = math.inf
    trials: list[tuple[str, int, str, Any, int]] = field(default_factory=list)

    def run(self, job: TimingJob, deadline_s: float) -> Iterator[tuple[int, Outcome]]:
        end = self.clock.now + deadline_s
        for index, trial in enumerate(job.trials):
            if self.clock.now >= end:
                return
            if len(self.trials) >= self.interrupt_after:
                raise KeyboardInterrupt
            assert bool(trial.programs) == (trial.provider in TILE_PROGRAMS)
            self.clock.now += self.trial_s
            self.trials.append((job.contract.key(), job.num_tokens, trial.provider, trial.config, job.timing.rounds))
            problem = self.problem(trial.provider, trial.config, job.check)
            if problem is not None:
                yield index, Outcome(trial.provider, trial.config, None, problem=problem)
                continue
            best = self.time_us(job.contract, job.num_tokens, trial.provider, trial.config)
            # The same every time, as far as the same is asked.
            generator = random.Random(repr(self.trials[-1]))
            sample_us = [best * (1 + self.noise * generator.gauss(0, 1)) for _ in range(job.timing.rounds)]
            yield index, Outcome(trial.provider, trial.config, summarize(sample_us), rel_err=1e-3)

    def floor_us(self, contract: Contract, num_tokens: int) -> float:
        return contract.traffic(num_tokens).bytes / 3e6

    def launch_us(self, contract: Contract, num_tokens: int, trial: Trial) -> float:
        # Several programs may be several launches.
        assert len(trial.programs) == 1
        return LAUNCH_US

    def configs(self) -> set[Any]:
        """That were timed, of all rows."""
        own = (each for each in self.trials if each[2] in TILE_PROGRAMS)
        return {(contract, size, config) for contract, size, _, config, _ in own}


@dataclass
class World:
    """All that a tuner needs, in a folder."""

    folder: Path
    rows: tuple[PlannedRow, ...]
    time_us: TimeUs
    clock: Clock = field(default_factory=Clock)
    fingerprint: Fingerprint = sample.H100
    compiler: FakeCompiler = field(default_factory=FakeCompiler)
    model: TunedModel | TunedHead = field(default_factory=lambda: tuned_model("qwen3-0.6b", "fp8_per_token"))
    others: tuple[PlannedRow, ...] = ()

    def __post_init__(self) -> None:
        self.timer = FakeTimer(self.clock, self.time_us)

    def tune(
        self,
        name: str = "tuned",
        budget_s: float = 10_000.0,
        effort: str = "normal",
        seed_packs: tuple[Any, ...] = (),
        step_tuner: StepTuner | None = None,
        helion_search: HelionSearch | None = None,
        helion_search_s: float = 0.0,
        progress: Callable[[TuneProgress], None] = lambda progress: None,
    ) -> TuneResult:
        plan = Plan(self.model, SM_90, self.rows, others=self.others)
        command = "parhelion tune qwen3-0.6b"
        options = TuneOptions(self.folder / name, budget_s, effort, seed_packs, command, helion_search_s)
        return tune(
            plan,
            target("sm_90"),
            self.fingerprint,
            self.timer,
            self.compiler,
            options,
            step_tuner=step_tuner,
            helion_search=helion_search,
            progress=progress,
            clock=self.clock,
        )


def planted(best: GemmConfig, slope: float = 0.08) -> TimeUs:
    """A valley around a config: every step away from it in a field costs a share of the time."""

    def time_us(contract: Contract, num_tokens: int, provider: str, config: Any) -> float:
        floor_us = contract.traffic(num_tokens).bytes / 3e6
        if not isinstance(config, GemmConfig):
            return 3 * floor_us
        return TIMES_FLOOR * floor_us * (1 + slope * steps_apart(config, best))

    return time_us


def steps_apart(a: Any, b: Any) -> float:
    """Doublings of numbers and differences of words, over all fields."""
    apart = 0.0
    for each in fields(a):
        here, there = getattr(a, each.name), getattr(b, each.name)
        numbers = isinstance(here, int) and isinstance(there, int) and here > 0 and there > 0
        apart += abs(math.log2(here / there)) if numbers else float(here != there)
    return apart


def program(request: Request, stack_bytes: int, number: int = 0) -> Program:
    contract, bucket, config = request
    code = repr((contract.key(), bucket, config, *[number] * bool(number))).encode()
    sha256 = hashlib.sha256(code).hexdigest()
    binary = sample.binary(
        code,
        kernel=f"{contract.name}.{contract.name}",
        config=plain(config),
        file=f"{sha256[:16]}.cubin",
        stack_bytes=stack_bytes,
    )
    return Program(binary, code)
