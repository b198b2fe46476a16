"""What planning costs a step with 256 running requests and a model that takes no time.

Two figures: ``schedule()`` and ``update()`` of the scheduler alone, and the whole step of the engine's loop around it,
with its hand-over to the worker's thread and its outputs.

python benchmarks/scheduler_overhead.py [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from parhelion.bench.report import Measurement, make_report, to_table, write_json
from parhelion.engine.core import EngineCore
from parhelion.engine.messages import AddRequest
from parhelion.engine.step_result import StepResult
from parhelion.platform.measure import summarize, time_rounds
from parhelion.scheduler.config import SchedulerConfig
from parhelion.scheduler.plan import StepPlan
from parhelion.scheduler.request import Request
from parhelion.scheduler.scheduler import Scheduler
from parhelion.types import SamplingParams

RESULT = Path(__file__).parent / "results" / "scheduler_overhead.json"


@dataclass(frozen=True)
class Settings:
    """Lengths in tokens. ``in_flight`` steps are planned before the oldest of them is back, as the engine does."""

    num_requests: int = 256
    prompt_length: int = 64
    block_size: int = 16
    steps: int = 1000
    in_flight: int = 1


@dataclass(frozen=True)
class StepCost:
    """Seconds of one step."""

    schedule_s: float
    update_s: float


def scheduler_config(settings: Settings) -> SchedulerConfig:
    """Room for all requests at their full length, so that nothing is preempted."""
    length = settings.prompt_length + settings.steps + 100
    blocks_each = -(-length // settings.block_size) + 1
    return SchedulerConfig(
        num_blocks=blocks_each * settings.num_requests,
        block_size=settings.block_size,
        max_num_seqs=settings.num_requests,
        max_num_batched_tokens=settings.num_requests * settings.prompt_length,
        max_model_len=length,
    )


def running_scheduler(settings: Settings) -> Scheduler:
    """A scheduler whose requests have all been prefilled and only decode from now on."""
    scheduler = Scheduler(scheduler_config(settings))
    for number in range(settings.num_requests):
        prompt = [number + 1] * settings.prompt_length
        scheduler.add(
            Request(
                request_id=str(number),
                prompt_token_ids=prompt,
                max_tokens=settings.steps + 90,
                stop_token_ids=frozenset(),
            )
        )
    while (plan := scheduler.schedule()) is not None:
        scheduler.update(plan, sampled_ids(plan))
        if len(plan.rows) == settings.num_requests and not plan.admissions:
            return scheduler
    raise RuntimeError("the requests ended before all of them ran")


def sampled_ids(plan: StepPlan) -> list[int]:
    """What a model that takes no time would sample."""
    return [7] * sum(row.samples for row in plan.rows)


def measure_steps(settings: Settings) -> list[StepCost]:
    """The cost of each step, with some always in flight."""
    scheduler = running_scheduler(settings)
    in_flight: deque[StepPlan] = deque()
    for _ in range(settings.in_flight):
        in_flight.append(_planned(scheduler))
    costs = []
    for _ in range(settings.steps):
        start = time.perf_counter()
        plan = scheduler.schedule()
        planned = time.perf_counter()
        assert plan is not None
        in_flight.append(plan)
        oldest = in_flight.popleft()
        sampled = sampled_ids(oldest)
        before = time.perf_counter()
        scheduler.update(oldest, sampled)
        costs.append(StepCost(planned - start, time.perf_counter() - before))
    return costs


class NoModel:
    """A worker that samples at once and computes nothing."""

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> StepResult:
        """One id for each row that samples."""
        ids = sampled_ids(plan)
        return StepResult(ids, [None] * len(ids), [])


def measure_loop(settings: Settings) -> list[float]:
    """Seconds of each step of the engine's loop once all requests decode."""
    core = EngineCore(scheduler_config(settings), NoModel(), overlap=settings.in_flight > 0)
    try:
        for number in range(settings.num_requests):
            core.add(
                AddRequest(
                    request_id=str(number),
                    prompt_token_ids=[number + 1] * settings.prompt_length,
                    params=SamplingParams(),
                    seed=0,
                    stop_token_ids=[],
                    max_tokens=settings.steps + 90,
                    priority=0,
                    arrival=float(number),
                )
            )
        while len(core.step()) < settings.num_requests:
            pass
        return time_rounds(core.step, rounds=settings.steps, warmup=5)
    finally:
        core.close()


def _planned(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.schedule()
    assert plan is not None
    return plan


def main() -> None:
    """Parse the options, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it works; no figure to quote")
    parser.add_argument("--output", type=Path, default=None, help=f"default: benchmarks/results/{RESULT.name}")
    options = parser.parse_args()
    settings = replace(Settings(), steps=50) if options.quick else Settings()
    costs = measure_steps(settings)
    loop = measure_loop(settings)
    case = f"{settings.num_requests} running requests"
    report = make_report(
        "scheduler_overhead",
        settings,
        [
            Measurement(case, "schedule", "ms", summarize([1e3 * cost.schedule_s for cost in costs])),
            Measurement(case, "update", "ms", summarize([1e3 * cost.update_s for cost in costs])),
            Measurement(
                case, "scheduler a step", "ms", summarize([1e3 * (cost.schedule_s + cost.update_s) for cost in costs])
            ),
            Measurement(case, "engine loop a step", "ms", summarize([1e3 * seconds for seconds in loop])),
        ],
    )
    Console().print(to_table(report))
    if options.output or not options.quick:
        write_json(report, options.output or RESULT)


if __name__ == "__main__":
    main()
