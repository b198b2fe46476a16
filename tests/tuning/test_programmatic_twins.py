"""Which configs have programmatic versions, and where."""

from __future__ import annotations

from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.kernel_config import KernelConfig
from parhelion.tuning.programmatic_twins import MOST_TOKENS, is_programmatic, twins

HOPPER, AMPERE, CDNA = (gemm_target(name) for name in ("sm_90", "sm_80", "gfx942"))


def test_a_row_kernels_config_has_one_and_a_gemms_several_that_differ_in_what_is_read_ahead() -> None:
    assert twins(KernelConfig(num_warps=8), 16, HOPPER) == [KernelConfig(num_warps=8, programmatic=True)]
    found = twins(GemmConfig(16, 64, 128, swap_ab=True), 16, HOPPER)
    assert [each.ahead for each in found] == [0, 1, 2]
    assert all(is_programmatic(each) and each.swap_ab for each in found)


def test_there_are_none_for_long_steps_nor_where_no_such_launch_exists() -> None:
    assert twins(KernelConfig(), 2 * MOST_TOKENS, HOPPER) == []
    assert twins(KernelConfig(), 16, AMPERE) == twins(KernelConfig(), 16, CDNA) == []
