"""What the process on the device does with what it is asked: it makes the device ready, times trials, tunes steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from parhelion.errors import first_line
from parhelion.ops.device_fingerprint import device_fingerprint
from parhelion.ops.pack_kernels import Load
from parhelion.packs.format import Fingerprint
from parhelion.platform.ceilings import Ceilings, measure_ceilings
from parhelion.platform.driver import load_function
from parhelion.tuning.jobs import Outcome
from parhelion.tuning.step_tuning import StepJob, StepResult, tune_step
from parhelion.tuning.timing_jobs import LaunchWork, TrialTimer, TrialWork


@dataclass(frozen=True)
class Begin:
    """Asks a new process to make the device ready.

    Attributes:
        measure: the device's ceilings as well.
    """

    measure: bool


@dataclass(frozen=True)
class DeviceFacts:
    """What is known of the device.

    Attributes:
        ceilings: measured.
        fingerprint: as packs name it; None of a CPU, which is there for tests.
    """

    ceilings: Ceilings
    fingerprint: Fingerprint | None


@dataclass(frozen=True)
class Answer:
    """What the process on the device says.

    Attributes:
        result: ``DeviceFacts``, None for a ``Begin`` without measuring, an ``Outcome``, a ``StepResult``
            or microseconds.
        problem: why there is no result; None if there is.
        device: whether it still works in the process, or the process is gone.
    """

    result: Any
    problem: str | None = None
    device: Literal["works", "broken", "gone"] = "works"


Work = Callable[[Any], Answer]
"""What the process does with a ``Begin``, a ``TrialWork``, a ``LaunchWork`` or a ``StepJob``; it is sent to it."""


class DeviceWork:
    """What the process does: it owns the device.

    Args:
        device: which.
        load: brings a binary onto it.
    """

    def __init__(self, device: torch.device, load: Load = load_function) -> None:
        # With a number: what is asked about a device may be asked before one is current.
        self._device = torch.device("cuda", 0) if device == torch.device("cuda") else device
        self._load = load
        self._timer: TrialTimer | None = None

    def __call__(self, item: Any) -> Answer:
        """Do what is asked. Whatever goes wrong is the answer."""
        try:
            result = self._done(item)
        except Exception as error:
            return Answer(None, first_line(error), "works" if still_works(self._device) else "broken")
        if isinstance(result, Outcome) and result.problem is not None and not still_works(self._device):
            return Answer(result, device="broken")
        return Answer(result)

    def _done(self, item: Any) -> DeviceFacts | Outcome | StepResult | float | None:
        if isinstance(item, Begin):
            return self._begin(item)
        if isinstance(item, StepJob):
            # What the trials before it have on the device goes first.
            self._timer = None
            return tune_step(item, self._device, self._load)
        if self._timer is None:
            self._timer = TrialTimer(self._device, self._load)
        if isinstance(item, LaunchWork):
            return self._timer.launch_us(item)
        assert isinstance(item, TrialWork)
        return self._timer.outcome(item)

    def _begin(self, item: Begin) -> DeviceFacts | None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        # The first use of a device fails here, if it does.
        torch.zeros(1, device=self._device).item()
        if not item.measure:
            return None
        ceilings = measure_ceilings(self._device)
        fingerprint = None
        if self._device.type == "cuda":
            fingerprint = device_fingerprint(self._device, ceilings.bandwidth)
        return DeviceFacts(ceilings, fingerprint)


def still_works(device: torch.device) -> bool:
    """Whether the device computes: after an illegal access nothing works any more in a process."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return int(torch.ones(8, device=device).sum()) == 8
    except RuntimeError:
        return False
