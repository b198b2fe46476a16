"""Which of several ways takes least: by whole blocks where both were measured so, else by their launches."""

from __future__ import annotations

import torch

from parhelion.ops.all_reduce_rms_norm import AllReduceRmsNorm
from parhelion.ops.collectives.all_reduce import AllReduce
from parhelion.ops.contract import Contract
from parhelion.ops.dynamic_per_token_scaled_fp8_quant import DynamicPerTokenScaledFp8Quant
from parhelion.ops.fused_add_rms_norm import FusedAddRmsNorm
from parhelion.ops.linear import Linear
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.rms_norm_dynamic_per_token_quant import RmsNormDynamicPerTokenQuant
from parhelion.ops.ways import quickest
from tests.ops.known_times import KnownTimes

NORM, QUANTIZE = RmsNorm(64, 1e-6, torch.float32), DynamicPerTokenScaledFp8Quant(64, torch.float32)
BOTH = RmsNormDynamicPerTokenQuant(64, 1e-6, torch.float32, torch.float8_e4m3fn, False)
APART, TOGETHER = (NORM, QUANTIZE, NORM), (BOTH, NORM)


def alone(contract: Contract, num_tokens: int) -> float | None:
    """Two in one take less than both."""
    return {NORM: 2.0, QUANTIZE: 2.0, BOTH: 3.0}[contract]


def test_what_both_have_in_common_need_not_be_known():
    def time_us(contract: Contract, num_tokens: int) -> float | None:
        return {QUANTIZE: 2.0, BOTH: 3.0}.get(contract, None if num_tokens > 1 else 2.0)

    times = KnownTimes(time_us)
    assert quickest([[NORM, NORM], [NORM, NORM]], 2, times) == 0
    assert quickest([[NORM, QUANTIZE], [NORM, BOTH]], 2, times) == 0
    assert quickest([[NORM, BOTH], [NORM, QUANTIZE]], 2, times) == 1


def test_whole_blocks_decide_against_the_sums_of_their_launches():
    assert quickest([APART, TOGETHER], 1, KnownTimes(alone)) == 1
    times = KnownTimes(alone, {APART: 4.0, TOGETHER: 4.5})
    assert quickest([APART, TOGETHER], 1, times) == 0
    assert quickest([TOGETHER, APART], 1, times) == 1


def test_a_block_of_which_the_other_was_not_measured_says_nothing():
    for known in ({APART: 0.1}, {TOGETHER: 100.0}):
        assert quickest([APART, TOGETHER], 1, KnownTimes(alone, known)) == 1


def test_sums_must_be_well_below_where_one_of_two_blocks_was_measured():
    def time_us(contract: Contract, num_tokens: int) -> float | None:
        return {NORM: 2.0, QUANTIZE: 2.0, BOTH: 3.9 if num_tokens == 1 else 3.8}[contract]

    assert quickest([APART, TOGETHER], 1, KnownTimes(time_us)) == 1
    for known in ({APART: 6.0}, {TOGETHER: 5.9}):
        assert quickest([APART, TOGETHER], 1, KnownTimes(time_us, known)) == 0
        assert quickest([APART, TOGETHER], 2, KnownTimes(time_us, known)) == 1


def test_blocks_are_enough_without_any_times_of_launches():
    assert quickest([APART, TOGETHER], 1, KnownTimes(blocks={APART: 4.0, TOGETHER: 3.0})) == 1


def test_of_equals_the_first_is_taken():
    assert quickest([APART, TOGETHER], 1, KnownTimes(alone, {APART: 4.0, TOGETHER: 4.0})) == 0


def test_each_pair_is_compared_by_the_best_that_is_known_of_both():
    third = (NORM, NORM, BOTH)
    times = KnownTimes(alone, {APART: 4.0, TOGETHER: 4.5})
    # By sums the third takes 7 us, the first 6: the second lost to the first already.
    assert quickest([APART, TOGETHER, third], 1, times) == 0
    assert quickest([third, TOGETHER, APART], 1, times) == 2


SUMMED, SUM, ADD_NORM = AllReduceRmsNorm(64, 2, 1e-6), AllReduce(64, 2), FusedAddRmsNorm(64, 1e-6)
LINEAR, NORMALIZING = Linear(64, 64), Linear(64, 65)
OF_RANKS = ((SUMMED, LINEAR), (SUM, NORMALIZING))
"""Two ways of several ranks: one norm is fused with the sum over them, the other with the product."""


def of_rank(total_us: float | None) -> KnownTimes:
    """What a rank does by itself is quicker the second way."""
    known = {SUMMED: 5.0, SUM: total_us, ADD_NORM: 2.0, LINEAR: 10.0, NORMALIZING: 11.0}
    return KnownTimes(lambda contract, num_tokens: known[contract])


def test_sums_over_ranks_count_for_what_they_take():
    assert quickest(OF_RANKS, 1, of_rank(3.0)) == 1
    assert quickest(OF_RANKS, 1, of_rank(10.0)) == 0
    # As they are of packs: nobody measured a sum by itself.
    assert quickest(OF_RANKS, 1, of_rank(None)) == 0


def test_blocks_of_ranks_are_compared_with_the_sums_that_they_were_measured_without():
    blocks = {(ADD_NORM, LINEAR): 12.0, (NORMALIZING,): 11.0}
    for total_us, expected in ((3.5, 1), (4.5, 0)):
        times = KnownTimes(of_rank(total_us).one, blocks)
        # 15 us of a block with a sum in it, which is 3 us more than the norm alone; and 11 us and a sum.
        assert quickest(OF_RANKS, 1, times) == expected
    assert quickest(OF_RANKS, 1, KnownTimes(of_rank(None).one, blocks)) == 0


def test_sums_that_both_have_need_not_be_known():
    def time_us(contract: Contract, num_tokens: int) -> float | None:
        return {LINEAR: 10.0, NORMALIZING: 9.0}.get(contract)

    assert quickest([(SUM, LINEAR), (SUM, NORMALIZING)], 1, KnownTimes(time_us)) == 1
    blocks = {(LINEAR,): 9.0, (NORMALIZING,): 10.0}
    assert quickest([(SUM, LINEAR), (SUM, NORMALIZING)], 1, KnownTimes(time_us, blocks)) == 0
