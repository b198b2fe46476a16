"""What the host does between two steps of a device, with graphs that take no time.

Steps that check guesses of the host's cannot be planned ahead: from when one is done until the next one's graph is
launched, the device has nothing to do. That time is the first figure: tokens are read, the scheduler learns of them and
plans, and the integers of the step are made and copied. The other is the processor time of a whole step, of all threads
together; where steps are planned ahead, as those with a head's guesses are, the device waits only if that is more than
its own.

A CPU stands in for the device, so what a GPU's driver takes for copies and launches is not in the figures.

    python benchmarks/host_overhead.py [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h100_speculation
import torch
from h100_speculation import HEAD, Anything, Bench, tpot_ms
from rich.console import Console

from parhelion.bench.report import Measurement, make_report, to_table, write_json
from parhelion.engine.device.step import Mode, Step, StepOutputs
from parhelion.engine.device.worker import DeviceWorker
from parhelion.engine.messages import AddRequest
from parhelion.engine.step_layout import Bucket
from parhelion.engine.step_result import PendingStep, StepResult
from parhelion.platform.measure import summarize
from parhelion.scheduler import StepPlan
from parhelion.speculative import Drafting, Speculation, Speculator

RESULT = Path(__file__).parent / "results" / "host_overhead.json"
TOKEN = 2


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        cases: who guesses, requests, and guesses of each. Those of every second step are right. With a head's guesses
            and without any steps are planned ahead.
        rounds: how often as many requests run from their prompts to their ends, behind one that is not counted.
    """

    cases: tuple[tuple[str, int, int], ...] = (
        ("given", 1, 1),
        ("given", 16, 3),
        ("head", 16, 3),
        ("off", 16, 0),
        ("off", 256, 0),
    )
    input_length: int = 64
    output_length: int = 512
    rounds: int = 4


class NoGraphs:
    """Stands in for the graphs; when they were launched.

    Attributes:
        done: when the device was done with the step before.
        own_us: from then to the target's launch.
    """

    def __init__(self, worker: DeviceWorker) -> None:
        self.done = 0.0
        self.own_us: list[float] = []
        self._target = worker._step, worker._followed_step
        self._ids = [torch.full((worker._buckets.largest.num_rows,), TOKEN + wrong) for wrong in (0, 1)]
        worker._runner = worker._eager = self  # type: ignore[assignment]
        if worker._drafter is not None:
            worker._drafter._runner = self  # type: ignore[assignment]

    def run(self, step: Step, bucket: Bucket, mode: Mode) -> StepOutputs:
        """Instead of a graph's replay."""
        wrong = 0
        if step in self._target:
            self.own_us.append(1e6 * (time.perf_counter() - self.done))
            wrong = len(self.own_us) % 2
        ids = self._ids[wrong][: bucket.num_rows]
        return StepOutputs(ids, ids, None)


class Timed:
    """A worker whose device is done with a step as soon as somebody waits for it."""

    def __init__(self, worker: DeviceWorker, graphs: NoGraphs) -> None:
        self._worker = worker
        self._graphs = graphs

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> PendingStep:
        """See ``StepExecutor``."""
        return _TimedStep(self._worker.execute(plan, admitted), self._graphs)


class _TimedStep:
    def __init__(self, step: PendingStep, graphs: NoGraphs) -> None:
        self._step = step
        self._graphs = graphs

    def wait(self) -> StepResult:
        self._graphs.done = time.perf_counter()
        return self._step.wait()


class Guesses(Anything):
    """A proposer."""

    def propose(self, request_id: str, count: int) -> list[int]:
        return [TOKEN] * count


def measure(settings: Settings, way: str, batch: int, count: int, folder: Path) -> list[Measurement]:
    """A case's figures."""
    run = h100_speculation.Settings(
        model="tiny",
        draft=HEAD if way == "head" else None,
        device="cpu",
        pack="off",
        input_length=settings.input_length,
        output_length=settings.output_length,
        batches=(batch,),
    )
    bench = Bench(run, folder)
    worker = bench.worker(count, way == "head")
    graphs = NoGraphs(worker)
    core = bench.core(worker, 1.0, _speculator(way, count))
    core._worker = Timed(worker, graphs)
    step, processor_us = core.step, list[float]()

    def timed_step() -> object:
        before = time.process_time()
        outputs = step()
        processor_us.append(1e6 * (time.process_time() - before))
        return outputs

    core.step = timed_step  # type: ignore[assignment,method-assign]
    try:
        tpot_ms(core, run, batch, 0)
        figures = graphs.own_us, processor_us
        for each in figures:
            each.clear()
        for number in range(1, settings.rounds + 1):
            tpot_ms(core, run, batch, number)
    finally:
        core.close()
    named = {"processor time": processor_us}
    if way == "given":
        named = {"tokens to own launch": graphs.own_us} | named
    guesses = {"given": f"guesses given: {count}", "head": f"guesses of a head: {count}", "off": "no guesses"}[way]
    case = f"batch {batch}, {guesses}"
    return [Measurement(case, quantity, "us", summarize(values)) for quantity, values in named.items()]


def _speculator(way: str, count: int) -> Speculator | None:
    if way == "off":
        return None
    if way == "given":
        return Speculation(Guesses(), count)
    return Drafting(count, cost=0.1, needs_states=True, on_device=True)


def main() -> None:
    """Parse the options, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it works; no figure to quote")
    parser.add_argument("--output", type=Path, default=None, help=f"default: benchmarks/results/{RESULT.name}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = replace(Settings(), output_length=32, rounds=1) if options.quick else Settings()
    measurements = []
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(settings.cases):
            measurements += measure(settings, *case, Path(folder) / str(number))
    report = make_report("host_overhead", settings, measurements)
    Console().print(to_table(report))
    if options.output or not options.quick:
        write_json(report, options.output or RESULT)


if __name__ == "__main__":
    main()
