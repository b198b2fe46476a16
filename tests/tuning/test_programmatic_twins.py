"""Which configs have programmatic versions, and where."""

from __future__ import annotations

from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.scaled_mm import ScaledMm
from parhelion.ops.weight_only_mv import WeightOnlyMv
from parhelion.ops.weight_only_mv.config import MvConfig
from parhelion.tuning.programmatic_twins import MOST_TOKENS, is_programmatic, twins

HOPPER, AMPERE, CDNA = (gemm_target(name) for name in ("sm_90", "sm_80", "gfx942"))


NORM, GEMM = RmsNorm(4096, 1e-6), ScaledMm(4096, 6144)


def test_a_row_kernels_config_has_one_and_a_gemms_several_that_differ_in_what_is_read_ahead() -> None:
    assert twins(KernelConfig(num_warps=8), NORM, 16, HOPPER) == [KernelConfig(num_warps=8, programmatic=True)]
    found = twins(GemmConfig(128, 64, 128), GEMM, 128, HOPPER)
    assert [each.ahead for each in found] == [0, 1, 2]
    assert all(map(is_programmatic, found))


def test_for_a_few_tokens_there_are_some_gemms_that_read_all_of_their_weight_ahead() -> None:
    found = twins(GemmConfig(16, 64, 128), GEMM, 16, HOPPER)
    assert [each.ahead for each in found[:3]] == [0, 1, 2]
    assert len(found) > 3
    for each in found[3:]:
        assert each.swap_ab
        assert each.ahead * each.block_k * each.split_k == GEMM.in_features
        assert each.block_n * each.ahead * each.block_k <= 512 * 32 * each.num_warps


def test_a_matrix_vector_product_may_have_any_part_of_the_weight_in_flight_before_it_waits() -> None:
    found = twins(MvConfig(8, 1024, ahead=2), WeightOnlyMv(4096, 6144), 1, HOPPER)
    assert [each.ahead for each in found] == [2, 1, 4]
    assert all(map(is_programmatic, found))


def test_there_are_none_for_long_steps_nor_where_no_such_launch_exists() -> None:
    assert twins(KernelConfig(), NORM, 2 * MOST_TOKENS, HOPPER) == []
    assert twins(KernelConfig(), NORM, 16, AMPERE) == twins(KernelConfig(), NORM, 16, CDNA) == []
