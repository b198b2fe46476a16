"""Of several ways to compute a layer the one that was measured to be quickest runs, at each size of M."""

from __future__ import annotations

from typing import Any

import torch

from parhelion.layers.alternatives import Alternatives, chosen_ways, layer_program, quickest
from parhelion.layers.program import PLAIN, Call, Fusion, Program
from parhelion.ops.contract import Contract
from parhelion.ops.dynamic_per_token_scaled_fp8_quant import DynamicPerTokenScaledFp8Quant
from parhelion.ops.launching import BUCKETS
from parhelion.ops.resolve import Resolver
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.rms_norm_dynamic_per_token_quant import RmsNormDynamicPerTokenQuant

CPU = torch.device("cpu")
NORM, QUANTIZE = RmsNorm(64, 1e-6, torch.float32), DynamicPerTokenScaledFp8Quant(64, torch.float32)
BOTH = RmsNormDynamicPerTokenQuant(64, 1e-6, torch.float32, torch.float8_e4m3fn, False)
PAIR = (Fusion(RmsNorm, DynamicPerTokenScaledFp8Quant, lambda norm, quantize: BOTH),)
APART, TOGETHER = [NORM, QUANTIZE, NORM], [BOTH, NORM]


def until_16(contract: Contract, num_tokens: int) -> float | None:
    """Together is quicker for up to 16 tokens, and nobody knows of more than 64."""
    times: dict[Contract, float] = {NORM: 2.0, QUANTIZE: 2.0, BOTH: 3.0 if num_tokens <= 16 else 5.0}
    return times[contract] if num_tokens <= 64 else None


def test_the_quickest_is_chosen_and_the_first_where_nothing_is_known():
    assert chosen_ways([APART, TOGETHER], until_16) == [int(bucket <= 16) for bucket in BUCKETS]
    assert chosen_ways([TOGETHER, APART], until_16) == [int(16 < bucket <= 64) for bucket in BUCKETS]
    assert set(chosen_ways([APART, TOGETHER], lambda contract, num_tokens: None)) == {0}


def test_what_both_have_in_common_need_not_be_known():
    def time_us(contract: Contract, num_tokens: int) -> float | None:
        return {QUANTIZE: 2.0, BOTH: 3.0}.get(contract, None if num_tokens > 1 else 2.0)

    assert quickest([[NORM, NORM], [NORM, NORM]], 2, time_us) == 0
    assert quickest([[NORM, QUANTIZE], [NORM, BOTH]], 2, time_us) == 0
    assert quickest([[NORM, BOTH], [NORM, QUANTIZE]], 2, time_us) == 1


class TimedResolver(Resolver):
    """Knows times without a pack."""

    def time_us(self, contract: Contract, num_tokens: int) -> float | None:
        return until_16(contract, num_tokens)


def layer(resolver: Resolver) -> tuple[Program | Alternatives, list[Call]]:
    weight = torch.rand(64)
    calls = [Call(NORM, ("residual",), ("normed",), (weight,)), Call(QUANTIZE, ("normed",), ("codes", "scales"))]
    return layer_program(calls, (PLAIN, PAIR), resolver, ("hidden", "residual")), calls


def test_each_size_of_m_runs_its_own_way_and_all_compute_the_same():
    program, calls = layer(TimedResolver(CPU))
    assert isinstance(program, Alternatives)
    plain = Program(calls, Resolver(CPU), ("hidden", "residual"))
    for num_tokens in (1, 16, 17, 300):
        values: list[Any] = [None, torch.randn(num_tokens, 64), *[None] * (program.num_values - 2)]
        expected: list[Any] = [None, values[1], *[None] * (plain.num_values - 2)]
        program(values)
        plain(expected)
        ran_together = values[2] is not None and values[2].dtype == torch.float8_e4m3fn
        assert ran_together == (num_tokens <= 16)
        codes = values[2] if ran_together else values[3]
        torch.testing.assert_close(codes.float(), expected[3].float())


def test_ways_that_are_never_the_quickest_are_not_made():
    program, _ = layer(Resolver(CPU))
    assert isinstance(program, Program)
    assert program.contracts == (NORM, QUANTIZE)
