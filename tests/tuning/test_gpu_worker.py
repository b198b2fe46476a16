"""Trials that crash, hang or take the device with them cost themselves and no other."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch

from parhelion.errors import PackError
from parhelion.ops.contract import Contract
from parhelion.ops.fused_add_rms_norm import FusedAddRmsNorm
from parhelion.ops.kernel_timer import Timing
from parhelion.ops.launching import launch_module
from parhelion.ops.packed_kinds import kind_of
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.rms_norm.launch import Config
from parhelion.packs.format import Argument, Recipe
from parhelion.platform.ceilings import Ceilings
from parhelion.platform.driver import Function
from parhelion.platform.driver_cuda import CudaDriver
from parhelion.platform.measure import summarize
from parhelion.quantization import UNQUANTIZED
from parhelion.tuning import gpu_worker
from parhelion.tuning.device_work import Answer, Begin, DeviceFacts, DeviceWork
from parhelion.tuning.gpu_worker import GpuError, GpuTimer, Limits
from parhelion.tuning.jobs import Outcome, TimingJob, Trial
from parhelion.tuning.model_calls import TunedModel
from parhelion.tuning.model_contracts import contracts_of
from parhelion.tuning.model_shapes import ModelShape
from parhelion.tuning.programs import Program, plain
from parhelion.tuning.step_tuning import Shortlist, StepJob, StepResult
from parhelion.tuning.timing_jobs import TrialTimer, TrialWork, launcher_of
from tests.packs import sample
from tests.platform import fake_library
from tests.platform.fake_library import FakeCuda
from tests.processes import wait_for_end

CPU = torch.device("cpu")
NORM = RmsNorm(64, dtype=torch.bfloat16)
FAST = Timing(rounds=3, warmup=1)
LIMITS = Limits(start_s=60, inputs_s=1, trial_s=4, compiling_s=4, step_s=2)
PATIENT = Limits()
"""Where nothing hangs."""
CEILINGS = Ceilings("made up", 1e9, 1e9, 1e9, 1e9, 1e9)


def work(item: Any) -> Answer:
    """Stands in for the device: a trial's provider says what happens. The time says in which process."""
    if isinstance(item, Begin):
        return Answer(DeviceFacts(CEILINGS, None) if item.measure else None)
    name = item.trial.provider
    if name == "crashes":
        os._exit(7)
    if name == "hangs":
        time.sleep(600)
    if name == "breaks":
        return Answer(Outcome(name, None, None, problem="an illegal access"), device="broken")
    if name == "fails":
        return Answer(None, "it failed")
    if name == "slow":
        time.sleep(0.3)
    return Answer(Outcome(name, item.trial.config, summarize([float(os.getpid())])))


def no_device(item: Any) -> Answer:
    return Answer(None, "no CUDA-capable device is detected")


def job(*providers: str, contract: Contract = NORM, check: bool = False) -> TimingJob:
    return TimingJob(contract, 3, tuple(Trial(name, None) for name in providers), FAST, check)


@pytest.fixture(scope="module")
def timer() -> Iterator[GpuTimer]:
    with GpuTimer(CPU, work, LIMITS) as timer:
        yield timer


def test_what_a_trial_does_to_its_process_is_its_own_outcome_and_the_rest_go_on(timer: GpuTimer):
    before = timer.restarts
    names = ("a", "crashes", "b", "hangs", "c", "breaks", "d", "fails", "e")
    outcomes = dict(timer.run(job(*names), 120.0))
    assert [outcomes[number].provider for number in range(len(names))] == list(names)
    problems = {outcome.provider: outcome.problem for outcome in outcomes.values()}
    assert problems["crashes"] == "the process on the GPU crashed (exit status 7)"
    assert problems["hangs"] in ("took longer than 4 s", "took longer than 5 s")
    assert problems["breaks"] == "an illegal access"
    assert problems["fails"] == "it failed"
    processes = [outcomes[number].time_us for number in (0, 2, 4, 6, 8)]
    assert all(process is not None for process in processes)
    # A new process after each of the first three, and none after a mere failure.
    assert len({process.median for process in processes if process}) == 4
    assert processes[3] == processes[4]
    assert timer.restarts - before == 3


def test_nothing_begins_after_the_deadline(timer: GpuTimer):
    # Each takes 0.3 s, and more where the machine has other work.
    assert 1 <= len(list(timer.run(job(*["slow"] * 20), 0.7))) <= 4
    assert list(timer.run(job("a"), 0.0)) == []


def test_a_process_that_died_while_idle_is_replaced_and_the_trial_is_made_all_the_same(timer: GpuTimer):
    [(_, outcome)] = timer.run(job("a"), 60.0)
    assert outcome.time_us is not None
    process = psutil.Process(int(outcome.time_us.median))
    process.kill()
    wait_for_end([process], 30)
    [(_, again)] = timer.run(job("b"), 60.0)
    assert again.time_us is not None
    assert again.time_us.median != outcome.time_us.median


def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next_one(timer: GpuTimer, monkeypatch):
    def interrupted(*unused: Any, **also: Any) -> None:
        raise KeyboardInterrupt

    list(timer.run(job("a"), 60.0))
    with monkeypatch.context() as patch:
        patch.setattr(gpu_worker, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(timer.run(job("a"), 60.0))
    assert [outcome.provider for _, outcome in timer.run(job("b", "c"), 60.0)] == ["b", "c"]


def test_the_cost_of_a_launch_is_measured_in_the_process_and_a_failure_is_no_figure():
    with GpuTimer(CPU, limits=PATIENT) as timer:
        assert 0 < (timer.launch_us(NORM, 4, Trial("torch", None)) or 0) < 1e6
        assert timer.launch_us(NORM, 4, Trial("flashinfer", None)) is None


def test_floors_come_from_what_the_process_measured(timer: GpuTimer):
    assert timer.ceilings == CEILINGS
    assert timer.fingerprint is None
    assert timer.floor_us(NORM, 8) == pytest.approx(1e6 * NORM.traffic(8).bytes / 1e9)


def test_a_device_that_is_not_there_is_an_error_with_a_way_out():
    with (
        GpuTimer(CPU, no_device, LIMITS) as timer,
        pytest.raises(GpuError, match="no CUDA-capable device is detected; see parhelion doctor"),
    ):
        list(timer.run(job("a"), 1.0))


def test_what_is_sent_to_the_process_and_back_survives_the_way():
    def ask(item: Any) -> Any:
        answer = pickle.loads(pickle.dumps(there(pickle.loads(pickle.dumps(item)))))
        assert answer.problem is None
        assert answer.device == "works"
        return answer.result

    there = pickle.loads(pickle.dumps(DeviceWork(CPU)))
    assert ask(Begin(measure=False)) is None
    outcome = ask(TrialWork(NORM, 4, FAST, True, Trial("torch", None)))
    assert outcome.problem is None
    assert outcome.time_us.count == FAST.rounds
    assert 0 < outcome.rel_err < 0.01
    model = TunedModel(ModelShape("tiny", 64, 128, 2, 1, 32, 256, NORM.epsilon), 2, UNQUANTIZED)
    trials = (Trial("reference", None),)
    shortlists = tuple(Shortlist(contract, trials, 1.0) for contract in contracts_of(model.shape, UNQUANTIZED))
    step = ask(StepJob(model, 2, shortlists, num_layers=2))
    assert isinstance(step, StepResult)
    assert NORM.key() in step.choices
    failed = there(StepJob(model, 2, (Shortlist(NORM, (Trial("vllm", None),), 1.0),), num_layers=2))
    assert failed.problem is not None
    assert "vllm cannot serve" in failed.problem


class WrongNorm(RmsNorm):
    """Its reference, and so all providers of ``rms_norm`` beside it, is off by a percent."""

    def reference(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().reference(x, weight) * 1.01


def test_a_wrong_result_is_rejected_and_not_timed():
    wrong = TrialWork(WrongNorm(64, dtype=torch.bfloat16), 4, FAST, True, Trial("torch", None))
    outcome = TrialTimer(CPU).outcome(wrong)
    assert outcome.time_us is None
    assert outcome.rel_err == pytest.approx(0.01, rel=0.2)
    assert "above" in (outcome.problem or "")
    unchecked = TrialTimer(CPU).outcome(replace(wrong, check=False))
    assert unchecked.problem is None
    assert unchecked.time_us is not None


def test_inputs_that_are_written_in_place_are_checked_as_they_were():
    contract = FusedAddRmsNorm(64, dtype=torch.bfloat16)
    timer = TrialTimer(CPU)
    first = timer.outcome(TrialWork(contract, 4, FAST, True, Trial("torch", None)))
    again = timer.outcome(TrialWork(contract, 4, FAST, True, Trial("torch", None)))
    assert first.problem is None
    assert first.rel_err == again.rel_err


def test_a_provider_that_cannot_serve_says_why():
    with pytest.raises(PackError, match="rms_norm: vllm cannot serve"):
        launcher_of(NORM, Trial("vllm", None), CPU)
    outcome = TrialTimer(CPU).outcome(TrialWork(NORM, 4, FAST, False, Trial("quack", None)))
    assert "rms_norm has no provider 'quack'" in (outcome.problem or "")


def test_a_trial_launches_the_programs_that_were_built_for_it():
    library = FakeCuda()
    driver = CudaDriver(library, fake_library.current_stream)
    inputs = (torch.zeros(5, 64, dtype=torch.bfloat16), torch.ones(64, dtype=torch.bfloat16))
    given: list[Any] = []
    launch_module("rms_norm").launch(NORM, lambda kernel, config, *rest: given.extend(rest), Config(), *inputs)
    recipe = Recipe(
        parameters=tuple(f"p{position}" for position in range(len(given))),
        grid=("p0.size(0)",),
        arguments=(Argument("p0", "*"), Argument("p2", "*")),
    )
    binary = sample.binary(
        kernel="rms_norm.rms_norm", config=plain(Config()), kinds=tuple(map(kind_of, given)), recipe=recipe
    )

    def load(data: bytes, symbol: str, shared_bytes: int) -> Function:
        assert data == b"code"
        library.num_parameters = len(recipe.arguments) + 2
        return driver.load_function(data, symbol, shared_bytes, 0)

    trial = Trial("helion", Config(), (Program(binary, b"code"),))
    launcher_of(NORM, trial, CPU, load)(*inputs)
    [launched] = library.launched
    assert launched.grid == (5, 1, 1)
    # The driver here computes nothing: what is left in the output is found out.
    outcome = TrialTimer(CPU, load).outcome(TrialWork(NORM, 5, FAST, True, trial))
    assert outcome.time_us is None
    assert outcome.problem is not None
