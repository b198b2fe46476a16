"""Timing on the GPU in a process of its own, which may hang, crash or lose its device without harm to the tuner.

The tuner's process never touches the device: a candidate that reads beyond its tensors takes the CUDA context with it,
and one that waits for itself never comes back. Then the process is killed, another one is started, and the next
candidate is timed there.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import torch

from parhelion.errors import ParhelionError
from parhelion.ops.contract import Contract
from parhelion.ops.kernel_timer import floor_us
from parhelion.packs.format import TILE_PROGRAMS, Fingerprint
from parhelion.platform.ceilings import Ceilings
from parhelion.tuning.device_work import Answer, Begin, DeviceFacts, DeviceWork, Work
from parhelion.tuning.jobs import Outcome, TimingJob, Trial
from parhelion.tuning.step_tuning import StepJob, StepResult
from parhelion.tuning.timing_jobs import LaunchWork, TrialWork
from parhelion.tuning.workers import Worker

_POLL_S = 0.2

_COMPILED_BEFORE = (*TILE_PROGRAMS, "torch", "reference")
"""Providers whose first call is as quick as the others; the rest compile, or may, as TorchInductor does."""


class GpuError(ParhelionError):
    """The process on the device cannot do what nobody can do without."""


@dataclass(frozen=True)
class Limits:
    """Seconds after which the process on the device is taken to hang, and killed.

    Attributes:
        start_s: until it is ready: imports, the device's context, and the first time the device's ceilings.
        inputs_s: more, for the first trial of a contract and M, which makes their inputs and the reference's outputs.
        trial_s: for a trial.
        compiling_s: for a trial of a provider that may compile.
        step_s: for tuning a step, on top of its own budget.
    """

    start_s: float = 180.0
    inputs_s: float = 60.0
    trial_s: float = 20.0
    compiling_s: float = 120.0
    step_s: float = 120.0


class GpuTimer:
    """A ``Timer`` (see ``jobs``) on one device. Close it, or use it in a ``with``.

    Args:
        device: where trials run; only the process touches it.
        work: what the process does.
        limits: of its time.

    Attributes:
        restarts: how often the process had to be replaced.

    Raises:
        GpuError: at the first use, if the device cannot be used at all.
    """

    def __init__(self, device: torch.device, work: Work | None = None, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._worker: Worker[Any, Answer] = Worker(
            work or DeviceWork(device), prepare_process, "the process on the GPU"
        )
        self._is_ready = False
        self._facts: DeviceFacts | None = None
        self._case: tuple[Contract, int] | None = None
        self.restarts = 0

    def __enter__(self) -> GpuTimer:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._worker.stop()

    @property
    def ceilings(self) -> Ceilings:
        """What the device can do at most, as measured in the process."""
        return self._facts_of_device().ceilings

    @property
    def fingerprint(self) -> Fingerprint | None:
        """The device as packs name it; None of a CPU."""
        return self._facts_of_device().fingerprint

    def floor_us(self, contract: Contract, num_tokens: int) -> float:
        """See ``Timer``."""
        return floor_us(contract, num_tokens, self.ceilings)

    def run(self, job: TimingJob, deadline_s: float) -> Iterator[tuple[int, Outcome]]:
        """See ``Timer``. A trial that has begun when the time is up is finished; the process's first start is free."""
        self._begin()
        end = time.monotonic() + deadline_s
        for index, trial in enumerate(job.trials):
            if time.monotonic() >= end:
                return
            self._begin()
            limits = self._limits
            limit_s = limits.trial_s if trial.provider in _COMPILED_BEFORE else limits.compiling_s
            if self._case != (job.contract, job.num_tokens):
                limit_s += limits.inputs_s
                self._case = (job.contract, job.num_tokens)
            work = TrialWork(job.contract, job.num_tokens, job.timing, job.check, trial)
            answer = self._ask(work, limit_s)
            if answer.problem is None:
                yield index, answer.result
            else:
                yield index, Outcome(trial.provider, trial.config, None, problem=answer.problem)

    def launch_us(self, contract: Contract, num_tokens: int, trial: Trial) -> float | None:
        """See ``Timer``."""
        self._begin()
        self._case = contract, num_tokens
        limits = self._limits
        found: float | None = self._ask(
            LaunchWork(contract, num_tokens, trial), limits.trial_s + limits.inputs_s
        ).result
        return found

    def tune_step(self, job: StepJob) -> StepResult | str:
        """Choose among shortlists in a step of the model; why not, if that fails."""
        self._begin()
        self._case = None
        answer = self._ask(job, job.budget_s + self._limits.step_s)
        result: StepResult | str = answer.result if answer.problem is None else answer.problem
        return result

    def _facts_of_device(self) -> DeviceFacts:
        self._begin()
        assert self._facts is not None
        return self._facts

    def _begin(self) -> None:
        """Have a process whose device is ready.

        Raises:
            GpuError: it cannot be had.
        """
        if self._worker.item is not None:
            # Whoever asked was interrupted; the answer would be taken for that to the next question.
            self._worker.restart()
            self._worker.advance()
            self._forget()
        if self._is_ready:
            return
        answer = self._ask(Begin(measure=self._facts is None), self._limits.start_s)
        if answer.problem is not None:
            raise GpuError(f"the device cannot be used for tuning: {answer.problem}; see parhelion doctor")
        self._facts = answer.result or self._facts
        self._is_ready = True

    def _ask(self, item: Any, limit_s: float) -> Answer:
        """What the process answers; the problem, if it has died of the item or was killed for it."""
        if not self._taken(item):
            # It died between two items, of neither.
            self._worker.restart()
            self._forget()
            if not isinstance(item, Begin):
                self._begin()
            self._worker.take([item])
        while True:
            wait([self._worker.pipe], timeout=_POLL_S)
            for answer in self._worker.results(_gone, limit_s):
                self._worker.advance()
                if answer.device == "broken":
                    self._worker.restart()
                if answer.device != "works":
                    self._forget()
                return answer

    def _taken(self, item: Any) -> bool:
        """Whether the process lives and begins with the item."""
        if self._worker.has_ended:
            return False
        try:
            self._worker.take([item])
        except OSError:
            return False
        return True

    def _forget(self) -> None:
        """Nothing is left of what was made ready."""
        self._is_ready = False
        self._case = None
        self.restarts += 1


def prepare_process() -> None:
    """Leave an interruption from the keyboard to the tuner, which ends this process as it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _gone(item: Any, reason: str) -> Answer:
    return Answer(None, reason, "gone")
