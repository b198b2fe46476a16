"""Choices made in the step: what is chosen, what noise cannot do, and that the blocks are the engine's."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch

from parhelion.layers.fusions import ON_GPU, SINGLE_LAUNCH, SINGLE_TOKEN
from parhelion.layers.program import cover
from parhelion.ops.contract import Contract
from parhelion.ops.fused_add_rms_norm import FusedAddRmsNorm
from parhelion.ops.gemm.target import gemm_target, target_of_device
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.linear import Linear
from parhelion.ops.provider import ReferenceProvider
from parhelion.ops.rms_norm import RmsNorm
from parhelion.platform.measure import summarize
from parhelion.quantization import FP8_PER_TOKEN, INT8_PER_TOKEN, UNQUANTIZED, QuantScheme
from parhelion.tuning import layer_stack, step_tuning
from parhelion.tuning.jobs import Trial
from parhelion.tuning.layer_stack import ChosenResolver, LayerStack, layers_beyond_l2
from parhelion.tuning.model_calls import TunedModel, layer_contracts, tuned_model
from parhelion.tuning.model_shapes import ModelShape
from parhelion.tuning.plan import make_plan, refuses
from parhelion.tuning.step_tuning import PASSES, Choice, Descent, Shortlist, StepJob, start_with, tune_step

CPU = torch.device("cpu")
TINY = TunedModel(ModelShape("tiny", 64, 128, 2, 1, 32, 256, 1e-6, qk_norm=True), 2, UNQUANTIZED)
H100 = gemm_target("sm_90")
A, B, C = (RmsNorm(size) for size in (16, 32, 64))


class Step:
    """A step whose time is known, and noisy if it should be."""

    def __init__(self, times: dict[Contract, tuple[float, ...]], noise: float = 0.0, seed: int = 0) -> None:
        self.times = times
        self.tried: list[Contract] = []
        self._noise = noise
        self._random = random.Random(seed)
        self._last: dict[Contract, int] = dict.fromkeys(times, 0)

    def __call__(self, choice: Choice) -> float:
        self.tried += [contract for contract in choice if choice[contract] != self._last[contract]]
        self._last = dict(choice)
        microseconds = sum(own[choice[contract]] for contract, own in self.times.items())
        return microseconds * self._random.uniform(1 - self._noise, 1 + self._noise)

    def sizes(self) -> dict[Contract, int]:
        return {contract: len(own) for contract, own in self.times.items()}


def descend(step: Step, seconds: float = 60.0) -> tuple[dict[Contract, int], Descent]:
    descent = Descent(step, time.monotonic() + seconds)
    return descent.best(step.sizes()), descent


def test_every_contract_gets_its_fastest_and_the_first_ones_are_tried_first():
    step = Step({A: (50.0, 40.0, 45.0), B: (30.0, 31.0), C: (20.0, 19.0, 10.0)})
    choices, descent = descend(step)
    assert choices == {A: 1, B: 0, C: 2}
    assert step.tried[0] is A
    assert descent.settled(choices) == (100.0, 80.0, choices)


def test_a_gain_below_the_threshold_changes_nothing():
    step = Step({A: (1000.0, 998.0)})
    choices, descent = descend(step)
    assert choices == {A: 0}
    assert descent.settled(choices) == (1000.0, 1000.0, {A: 0})


def test_noise_seldom_chooses_among_equals_and_never_against_a_large_loss():
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    for run in range(20):
        step = Step({A: (100.0, 100.0, 100.0), B: (100.0, 120.0)}, noise=0.005, seed=seed + run)
        choices, _ = descend(step)
        assert choices[B] == 0


def test_what_was_faster_once_is_measured_again():
    answers = iter([100.0, 50.0, 100.0, 100.0, 100.0, 100.0])
    descent = Descent(lambda choice: next(answers), time.monotonic() + 60)
    assert descent.best({A: 2}) == {A: 0}
    # The first time, the lucky one, both again; the second pass is left out, as nothing has changed.
    assert descent.evaluations == 4


def test_an_alternative_that_fails_is_not_chosen_and_is_noted():
    def time_step(choice: Choice) -> float:
        if choice[A] == 1:
            raise RuntimeError("out of shared memory")
        return 100.0 - choice[A]

    descent = Descent(time_step, time.monotonic() + 60)
    assert descent.best({A: 3}) == {A: 2}
    assert descent.problems[0] == "RuntimeError: out of shared memory"


def test_passes_end_and_so_does_the_time():
    step = Step({A: (10.0, 9.0), B: (10.0, 9.0)})
    choices, descent = descend(step, seconds=-1.0)
    assert choices == {A: 0, B: 0}
    assert descent.evaluations == 1
    # Every evaluation is better than the one before, so that the passes alone end it.
    counter = iter(range(10_000))
    endless = Descent(lambda choice: 1e6 * 0.5 ** next(counter), time.monotonic() + 60)
    endless.best({A: 2})
    assert endless.evaluations == 1 + 3 * PASSES


def test_choices_that_turn_out_slower_in_the_end_are_taken_back():
    descent = Descent(lambda choice: 100.0 + choice[A], time.monotonic() + 60)
    assert descent.settled({A: 1}) == (100.0, 100.0, {A: 0})


def reference_lists(model: TunedModel, count: int = 1) -> tuple[Shortlist, ...]:
    trials = (Trial("reference", None),) * count
    return tuple(Shortlist(contract, trials, 1.0) for contract in layer_contracts(model, H100))


@pytest.mark.parametrize("quantization", [UNQUANTIZED, FP8_PER_TOKEN, INT8_PER_TOKEN], ids=lambda each: each.name)
def test_the_blocks_call_what_the_tuner_plans_rows_for(quantization):
    shape = replace(TINY.shape, qkv_bias=True)
    model = TunedModel(shape, 3, quantization, max_position=700, windows=(None, 96, None), mlp_bias=True)
    planned = layer_contracts(model, target_of_device(CPU))
    stack = LayerStack(model, 3, CPU, num_layers=3)
    # The tuner counts the model's last norm as well, which is like those of the blocks.
    final = next(contract for contract in planned if isinstance(contract, FusedAddRmsNorm))
    planned[final] -= 1
    assert Counter(stack.contracts) == +planned


@pytest.mark.parametrize("way", range(len(ON_GPU)))
@pytest.mark.parametrize("quantization", [UNQUANTIZED, FP8_PER_TOKEN, INT8_PER_TOKEN], ids=lambda each: each.name)
def test_every_way_to_compute_a_block_runs_and_has_rows_for_one_token(quantization: QuantScheme, way: int):
    model = replace(TINY, quantization=quantization)
    planned = {row.contract for row in make_plan(model, H100, refuses, sizes=(1,)).rows}
    reference = ReferenceProvider()

    def computed(way: int) -> torch.Tensor:
        stack = LayerStack(model, 1, CPU, num_layers=2, way=way)
        assert set(stack.contracts) <= planned
        given = {contract: reference.launcher(contract) for contract in stack.contracts}
        hidden, residual = stack.bound(ChosenResolver(CPU, given))()
        return hidden.float() + residual.float()

    found, usual = computed(way), computed(0)
    # The same but for what quantized activations lose, a few percent.
    assert (found - usual).norm() < 0.1 * usual.norm()


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_blocks_in_one_launch_are_alike_and_compute_what_their_parts_do(num_tokens: int, monkeypatch):
    model = TunedModel(ModelShape("wide", 2048, 2048, 12, 2, 128, 256, 1e-6, qk_norm=True), 2, FP8_PER_TOKEN)
    planned = {row.contract for row in make_plan(model, H100, refuses, sizes=(num_tokens,)).rows}
    reference = ReferenceProvider()

    def computed(stack: LayerStack) -> list[torch.Tensor]:
        given = {contract: reference.launcher(contract) for contract in stack.contracts}
        return [each.clone() for each in stack.bound(ChosenResolver(CPU, given))()]

    whole = ON_GPU.index(SINGLE_LAUNCH)
    torch.manual_seed(0)  # of the rotary table
    stack = LayerStack(model, num_tokens, CPU, num_layers=3, way=whole)
    (block,) = set(stack.contracts)
    assert block in planned
    assert len(stack.contracts) == 3
    found = computed(stack)
    # None is a model's first: what a block before has left counts too.
    left = stack._left
    assert left is not None
    stack._left = torch.zeros_like(left)
    assert not torch.equal(computed(stack)[0], found[0])
    monkeypatch.setattr(layer_stack, "cover", lambda calls, plan: cover(calls, SINGLE_TOKEN))
    torch.manual_seed(0)
    parts = LayerStack(model, num_tokens, CPU, num_layers=3, way=whole)
    assert len(parts.contracts) == 15
    for ours, theirs in zip(found, computed(parts), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("num_tokens", [1, 5, 300, 1100])
def test_the_tokens_are_those_of_a_step(num_tokens):
    """Decode rows or prompts: every token has a slot of its own, in a block of its row, and a run changes no input."""
    stack = LayerStack(TINY, num_tokens, CPU, num_layers=1)
    assert len(set(stack._slots.tolist())) == num_tokens
    assert stack._positions.max() < stack._attention.max_seq_len
    if num_tokens <= 256:
        assert stack._attention.max_query_len == 1
        assert (stack._positions == stack._attention.seq_lens - 1).all()
    else:
        assert stack._positions[:3].tolist() == [0, 1, 2]
        assert stack._positions[-1] + 1 == stack._attention.seq_lens[-1]


def test_launchers_that_are_given_serve_and_others_are_found_as_without_a_pack():
    stack = LayerStack(TINY, 3, CPU, num_layers=2)
    reference = ReferenceProvider()
    given = {contract: reference.launcher(contract) for contract in stack.contracts}
    hidden, residual = (out.clone() for out in stack.bound(ChosenResolver(CPU, given))())
    assert hidden.shape == residual.shape == (3, 64)
    assert torch.isfinite(hidden.float()).all()
    called: list[str] = []

    def watched(*inputs):
        called.append("norm")
        return reference.launcher(stack.contracts[0])(*inputs)

    given[stack.contracts[0]] = watched
    del given[next(contract for contract in stack.contracts if isinstance(contract, Linear))]
    again, _ = stack.bound(ChosenResolver(CPU, given))()
    # The first block alone has a norm without a residual.
    assert called == ["norm"]
    torch.testing.assert_close(again, hidden, rtol=0.05, atol=0.05)


def test_a_step_is_tuned_from_shortlists(monkeypatch):
    tried: list[int] = []

    def timed(run, sets, device, timing):
        run()
        tried.append(1)
        return summarize([1e-4])

    monkeypatch.setattr(step_tuning, "time_launcher", timed)
    lists = reference_lists(TINY, count=2)
    unknown = Shortlist(RmsNorm(999), (Trial("reference", None),), 1e6)
    result = tune_step(StepJob(TINY, 2, (*lists, unknown), num_layers=1), CPU)
    called = set(LayerStack(TINY, 2, CPU, 1).contracts)
    assert set(result.choices) == {contract.key() for contract in called}
    assert result.num_layers == 1
    assert result.evaluations == len(tried)


def test_the_blocks_exceed_the_cache(monkeypatch):
    monkeypatch.setattr("parhelion.tuning.layer_stack.l2_bytes", lambda device: 50 << 20)
    assert layers_beyond_l2(tuned_model("qwen3-8b", "fp8_per_token"), CPU) == 8
    smaller = tuned_model("smollm2-135m")
    layers = layers_beyond_l2(smaller, CPU)
    assert 2 * layers * sum(n * k for n, k in smaller.shape.projections) > 3 * (50 << 20)
    assert layers_beyond_l2(TINY, CPU) == 64


def test_what_only_pays_together_is_found_from_a_start_that_has_it_all():
    """Each alone costs a little, both together gain much: no single step leads there."""

    def time_step(choice):
        return {(0, 0): 100.0, (1, 0): 101.0, (0, 1): 101.0, (1, 1): 80.0}[choice[A], choice[B]]

    alone = Descent(time_step, time.monotonic() + 60.0)
    assert alone.best({A: 2, B: 2}) == {A: 0, B: 0}
    together = Descent(time_step, time.monotonic() + 60.0)
    assert together.best({A: 2, B: 2}, [{A: 1, B: 1}]) == {A: 1, B: 1}


def test_the_start_takes_the_first_programmatic_trial_of_each_shortlist():
    plain, programmatic = KernelConfig(), KernelConfig(programmatic=True)
    lists = [
        Shortlist(A, (Trial("helion", plain), Trial("torch", None), Trial("helion", programmatic)), 1.0),
        Shortlist(B, (Trial("torch", None), Trial("helion", plain)), 1.0),
    ]
    assert start_with(lists, programmatic=True) == {A: 2, B: 0}
    assert start_with(lists, programmatic=False) == {A: 0, B: 0}
    turned = [Shortlist(A, lists[0].trials[::-1], 1.0)]
    assert start_with(turned, programmatic=False) == {A: 1}
