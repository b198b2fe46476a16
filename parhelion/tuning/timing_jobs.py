"""Trials on the device: made, checked against float64, and timed, in the process that may be killed for them."""

from __future__ import annotations

import functools
import statistics
import time
from dataclasses import dataclass

import torch

from parhelion.errors import PackError, first_line
from parhelion.ops.contract import Contract, Launcher, Tensors
from parhelion.ops.gemm.target import target_of_device
from parhelion.ops.inputs import map_tensors
from parhelion.ops.kernel_timer import Timing, make_room, rotating_inputs, time_launcher
from parhelion.ops.oracle import Oracle
from parhelion.ops.pack_kernels import Load, RowRunner
from parhelion.ops.packed_launch import PackedKernel
from parhelion.ops.provider import forget_shapes
from parhelion.ops.registry import op
from parhelion.ops.tile_programs import programs_module
from parhelion.packs.format import TILE_PROGRAMS
from parhelion.platform.driver import load_function
from parhelion.platform.measure import scaled
from parhelion.tuning.jobs import Outcome, Trial

LAUNCHES, LAUNCH_ROUNDS = 100, 21
"""So few at a time that the device's queue takes them all."""


@dataclass(frozen=True)
class TrialWork:
    """One trial of a ``TimingJob``, as it is sent to the process on the device; see there."""

    contract: Contract
    num_tokens: int
    timing: Timing
    check: bool
    trial: Trial


@dataclass(frozen=True)
class LaunchWork:
    """Asks what Python takes to launch a trial."""

    contract: Contract
    num_tokens: int
    trial: Trial


class TrialTimer:
    """Times trials, those of one contract and M on the same inputs.

    Args:
        device: where.
        load: brings a binary onto the device.
    """

    def __init__(self, device: torch.device, load: Load = load_function) -> None:
        self._device = device
        self._load = load
        self._case: _Case | None = None

    def outcome(self, work: TrialWork) -> Outcome:
        """Make, check and time a trial. It may fail in any way: the outcome says how."""
        try:
            return self._tried(work)
        except Exception as error:
            return Outcome(work.trial.provider, work.trial.config, None, problem=first_line(error))
        finally:
            if self._device.type == "cuda":
                make_room(self._device)

    def launch_us(self, work: LaunchWork) -> float:
        """Microseconds of the host for one launch: the median of some rounds, between which the device catches up."""
        inputs = self._case_of(work.contract, work.num_tokens).sets[0]
        launch = launcher_of(work.contract, work.trial, self._device, self._load)
        rounds = []
        for _ in range(LAUNCH_ROUNDS):
            begin = time.perf_counter()
            for _ in range(LAUNCHES):
                launch(*inputs)
            rounds.append((time.perf_counter() - begin) / LAUNCHES)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        return 1e6 * statistics.median(rounds)

    def _tried(self, work: TrialWork) -> Outcome:
        case = self._case_of(work.contract, work.num_tokens)
        launch = launcher_of(work.contract, work.trial, self._device, self._load)
        rel_err = 0.0
        if work.check:
            errors = case.oracle().compare(launch)
            rel_err = max((error.relative for error in errors), default=0.0)
            problem = next((f"{each.output} {each.problem}" for each in errors if each.problem is not None), None)
            if problem is not None:
                return Outcome(work.trial.provider, work.trial.config, None, rel_err, problem)
        seconds = time_launcher(launch, case.sets, self._device, work.timing)
        workspace = workspace_bytes(launch, case.sets[0], self._device)
        return Outcome(work.trial.provider, work.trial.config, scaled(seconds, 1e6), rel_err, workspace_bytes=workspace)

    def _case_of(self, contract: Contract, num_tokens: int) -> _Case:
        if self._case is None or not self._case.is_of(contract, num_tokens):
            # The old inputs go before the new ones come: each may take gigabytes.
            self._case = None
            self._case = _Case(contract, num_tokens, self._device)
        return self._case


class _Case:
    """The inputs of a contract at one M.

    Attributes:
        sets: as ``time_launcher`` takes them. Launches may have written to them.
    """

    def __init__(self, contract: Contract, num_tokens: int, device: torch.device) -> None:
        self._contract = contract
        self._num_tokens = num_tokens
        self.sets = rotating_inputs(contract, num_tokens, device)
        self._unwritten: Tensors = self.sets[0]
        if contract.mutated:
            self._unwritten = map_tensors(self.sets[0], torch.clone)
        self._oracle: Oracle | None = None

    def is_of(self, contract: Contract, num_tokens: int) -> bool:
        return (self._contract, self._num_tokens) == (contract, num_tokens)

    def oracle(self) -> Oracle:
        """Made when the first trial is checked."""
        if self._oracle is None:
            self._oracle = Oracle(self._contract, self._unwritten)
        return self._oracle


def launcher_of(contract: Contract, trial: Trial, device: torch.device, load: Load = load_function) -> Launcher:
    """What computes a contract as a trial says: with the programs that were built for it, or as a provider does.

    Raises:
        PackError: a program cannot be loaded, or the provider cannot serve here.
    """
    if trial.provider not in TILE_PROGRAMS:
        provider = op(contract.name).provider(trial.provider)
        why_not = provider.why_not(device) or provider.refuses(contract)
        if why_not is not None:
            raise PackError(f"{contract.name}: {trial.provider} cannot serve {contract.key()}: {why_not}")
        forget_shapes(provider)
        return provider.launcher(contract)
    processors = num_processors(device)
    kernels = []
    for program in trial.programs:
        function = load(program.data, program.binary.symbol, program.binary.shared_bytes)
        kernels.append(PackedKernel(program.binary, function, processors))
    run = RowRunner(kernels, target_of_device(device).name)
    module = programs_module(contract.name, trial.provider)
    return functools.partial(module.launch, contract, run, trial.config)


def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors or compute units; 1 of a CPU."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def workspace_bytes(launch: Launcher, inputs: Tensors, device: torch.device) -> int:
    """Memory that one launch takes beside its inputs and outputs; 0 on a CPU, where nobody counts.

    Libraries may hold workspaces of their own, which torch knows nothing of.
    """
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    outputs = launch(*inputs)
    torch.cuda.synchronize(device)
    workspace = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    del outputs
    return int(workspace)
