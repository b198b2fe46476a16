"""Of several ways to compute a layer the one that was measured to be quickest runs, at each size of M."""

from __future__ import annotations

from typing import Any

import torch

from parhelion.layers.alternatives import Alternatives, LayerPrograms, chosen_ways
from parhelion.layers.decoder_layer import LayerShape, LayerWeights, as_later_block, layer_calls
from parhelion.layers.program import PLAIN, Call, Fusion, Program
from parhelion.ops.all_reduce_rms_norm import AllReduceRmsNorm
from parhelion.ops.collectives.all_reduce import AllReduce
from parhelion.ops.contract import Contract
from parhelion.ops.dynamic_per_token_scaled_fp8_quant import DynamicPerTokenScaledFp8Quant
from parhelion.ops.fused_add_rms_norm import FusedAddRmsNorm
from parhelion.ops.launching import BUCKETS
from parhelion.ops.linear import Linear
from parhelion.ops.resolve import Resolver
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.rms_norm_dynamic_per_token_quant import RmsNormDynamicPerTokenQuant
from parhelion.quantization import UNQUANTIZED, LinearWeights
from tests.ops.known_times import KnownTimes

CPU = torch.device("cpu")
NAMES = ("hidden", "residual")
NORM, QUANTIZE = RmsNorm(64, 1e-6, torch.float32), DynamicPerTokenScaledFp8Quant(64, torch.float32)
ADD_NORM = FusedAddRmsNorm(64, 1e-6, torch.float32)
BOTH = RmsNormDynamicPerTokenQuant(64, 1e-6, torch.float32, torch.float8_e4m3fn, False)
ADD_BOTH = RmsNormDynamicPerTokenQuant(64, 1e-6, torch.float32, torch.float8_e4m3fn, True)
PAIR = (
    Fusion(RmsNorm, DynamicPerTokenScaledFp8Quant, lambda norm, quantize: BOTH),
    Fusion(FusedAddRmsNorm, DynamicPerTokenScaledFp8Quant, lambda norm, quantize: ADD_BOTH),
)
APART, TOGETHER = [NORM, QUANTIZE, NORM], [BOTH, NORM]


def until_16(contract: Contract, num_tokens: int) -> float | None:
    """Together is quicker for up to 16 tokens, and nobody knows of more than 64."""
    times: dict[Contract, float] = {NORM: 2.0, QUANTIZE: 2.0, BOTH: 3.0 if num_tokens <= 16 else 5.0}
    return times.get(contract) if num_tokens <= 64 else None


def test_the_quickest_is_chosen_and_the_first_where_nothing_is_known():
    times = KnownTimes(until_16)
    assert chosen_ways([APART, TOGETHER], times) == [int(bucket <= 16) for bucket in BUCKETS]
    assert chosen_ways([TOGETHER, APART], times) == [int(16 < bucket <= 64) for bucket in BUCKETS]
    assert set(chosen_ways([APART, TOGETHER], KnownTimes())) == {0}


class TimedResolver(Resolver):
    """Knows times without a pack.

    Attributes:
        asked: of how many contracts it was asked for the time.
    """

    def __init__(self) -> None:
        super().__init__(CPU)
        self.asked = 0

    def time_us(self, contract: Contract, num_tokens: int) -> float | None:
        self.asked += 1
        return until_16(contract, num_tokens)


def calls_of(norm: Contract = NORM) -> list[Call]:
    first = Call(norm, ("residual",), ("normed",), (torch.rand(64),))
    if norm == ADD_NORM:
        first = Call(norm, ("hidden", "residual"), ("normed", "residual"), first.weights)
    return [first, Call(QUANTIZE, ("normed",), ("codes", "scales"))]


def ran_together(program: Program | Alternatives, num_tokens: int) -> bool:
    """Runs it and sees which way it took: together there is no normed value."""
    values: list[Any] = [None, torch.randn(num_tokens, 64), *[None] * (program.num_values - 2)]
    program(values)
    return values[2] is not None and values[2].dtype == torch.float8_e4m3fn


def test_each_size_of_m_runs_its_own_way_and_all_compute_the_same():
    calls = calls_of()
    program = LayerPrograms((PLAIN, PAIR), TimedResolver()).program(calls, NAMES)
    assert isinstance(program, Alternatives)
    plain = Program(calls, Resolver(CPU), NAMES)
    for num_tokens in (1, 16, 17, 300):
        values: list[Any] = [None, torch.randn(num_tokens, 64), *[None] * (program.num_values - 2)]
        expected: list[Any] = [None, values[1], *[None] * (plain.num_values - 2)]
        program(values)
        plain(expected)
        is_together = values[2] is not None and values[2].dtype == torch.float8_e4m3fn
        assert is_together == (num_tokens <= 16)
        assert len(program.contracts_at(num_tokens)) == (1 if is_together else 2)
        codes = values[2] if is_together else values[3]
        torch.testing.assert_close(codes.float(), expected[3].float())


def test_ways_that_are_never_the_quickest_are_not_made():
    program = LayerPrograms((PLAIN, PAIR), Resolver(CPU)).program(calls_of(), NAMES)
    assert isinstance(program, Program)
    assert program.contracts == (NORM, QUANTIZE)


def test_a_first_layer_is_computed_as_the_others_are_whatever_is_known_of_it():
    programs = LayerPrograms((PLAIN, PAIR), TimedResolver())
    later, first = calls_of(ADD_NORM), calls_of()
    # Nobody knows how long the sums take, so the others run apart, although the first one alone is quicker together.
    assert isinstance(programs.program(first, NAMES, alike=later), Program)
    alone = programs.program(first, NAMES)
    assert ran_together(alone, 16)
    assert not ran_together(alone, 17)
    # And the other way round.
    assert isinstance(programs.program(later, NAMES, alike=first), Alternatives)


def test_a_way_that_sums_over_ranks_by_itself_must_be_known_to_be_quicker_with_that_sum():
    """Of what a rank does alone the way without a norm of its own is always quicker."""
    total, linear = AllReduce(64, 2, torch.float32), Linear(64, 64, torch.float32)
    summed, normalizing = AllReduceRmsNorm(64, 2, 1e-6, torch.float32), Linear(64, 65, torch.float32)
    plans = tuple(
        tuple(Fusion(first, second, lambda one, two, made=made: made) for first, second, made in fusions)
        for fusions in (
            [(AllReduce, FusedAddRmsNorm, summed)],
            [(FusedAddRmsNorm, Linear, normalizing)],
        )
    )
    calls = [
        Call(total, ("hidden",), ("hidden",)),
        Call(ADD_NORM, ("hidden", "residual"), ("normed", "residual"), (torch.rand(64),)),
        Call(linear, ("normed",), ("hidden",), (torch.rand(64, 64),)),
    ]

    class OfRanks(Resolver):
        def time_us(self, contract: Contract, num_tokens: int) -> float | None:
            return {summed: 5.0, ADD_NORM: 2.0, linear: 10.0, normalizing: 11.0}.get(contract)

    resolver = OfRanks(CPU, {"all_reduce": "reference"})
    program = LayerPrograms(plans, resolver).program(calls, NAMES)
    assert isinstance(program, Program)
    assert program.contracts == (summed, linear)


def test_layers_that_are_alike_are_decided_once():
    resolver = TimedResolver()
    programs = LayerPrograms((PLAIN, PAIR), resolver)
    programs.program(calls_of(), NAMES)
    asked = resolver.asked
    programs.program(calls_of(), NAMES)
    assert resolver.asked == asked > 0


def test_a_first_block_stands_for_a_later_one():
    vector = torch.ones(64)
    linear = LinearWeights(torch.ones(64, 64), None, None, UNQUANTIZED)
    weights = LayerWeights(vector, vector, linear, linear, linear, linear, None, None)
    shape = LayerShape(64, 32, 2, 1, 32, 1e-6, 16, 128, None, torch.float32)
    first, later = (layer_calls(shape, weights, torch.ones(128, 32), is_first) for is_first in (True, False))
    stands = as_later_block(shape, weights, first)
    assert [call.contract for call in stands] == [call.contract for call in later]
    assert [(call.inputs, call.outputs) for call in stands] == [(call.inputs, call.outputs) for call in later]
    assert first[0].contract == RmsNorm(64, 1e-6, torch.float32)
