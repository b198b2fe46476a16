"""``scaled_mm``'s tile program in the interpreter, beside the reference: FP8 and INT8, every algorithm."""

from __future__ import annotations

import pytest
import torch

from parhelion.ops.check import check
from parhelion.ops.gemm import launch as gemm_launch
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.scaled_mm import OP, ScaledMm
from tests.ops.helion.awkward import AWKWARD_TOKENS, generator
from tests.ops.helion.gemm_variants import VARIANTS, launcher

CPU = torch.device("cpu")

FP8 = ScaledMm(200, 72, bias=True)
INT8 = ScaledMm(200, 72, torch.int8, bias=True)


@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
@pytest.mark.parametrize("contract", OP.examples[:2], ids=str)
def test_agrees_with_the_reference(contract: ScaledMm, num_tokens: int):
    inputs = contract.sample_inputs(num_tokens, CPU, generator())
    for error in check(contract, OP.provider("helion").launcher(contract), inputs):
        assert error.problem is None, error


@pytest.mark.parametrize("num_tokens", [1, 13, 67])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("contract", [FP8, INT8], ids=["fp8", "int8"])
def test_every_algorithm_agrees_with_the_reference(contract: ScaledMm, variant: str, num_tokens: int):
    inputs = contract.sample_inputs(num_tokens, CPU, generator())
    for error in check(contract, launcher(contract, variant), inputs):
        assert error.problem is None, error


@pytest.mark.parametrize("variant", VARIANTS)
def test_int8_sums_are_exact_where_float32_sums_would_not_be(variant: str):
    contract = ScaledMm(2048, 16, torch.int8, torch.float32)
    codes = torch.full((2, 2048), 127, dtype=torch.int8)
    weight = codes[:1].expand(16, -1).clone()
    weight[:, 1::2] = 126
    ones = torch.ones(16, 1)
    y = launcher(contract, variant)(codes, ones[:2], weight, ones)
    # 1024 * 127 * 253 = 32,902,144 > 2^24: a float32 that is even, so it holds the exact sum.
    assert torch.equal(y, torch.full((2, 16), 1024.0 * 127 * 253))


@pytest.mark.parametrize("variant", ["standard", "swapped", "split_3", "split_4_swapped"])
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e30, float("nan"), float("inf")])
def test_a_strange_scale_stays_in_its_row(scale: float, variant: str):
    codes, scales, weight, weight_scales, bias = FP8.sample_inputs(19, CPU, generator())
    launch = launcher(FP8, variant)
    plain = launch(codes, scales, weight, weight_scales, bias)
    scales[17] = scale
    inputs = codes, scales, weight, weight_scales, bias
    for error in check(FP8, launch, inputs):
        assert error.problem is None, error
    others = [row for row in range(19) if row != 17]
    assert torch.equal(launch(*inputs)[others], plain[others])


@pytest.mark.parametrize("variant", ["standard", "swapped", "split_3", "split_4_swapped"])
def test_a_nan_code_stays_in_its_row(variant: str):
    inputs = FP8.sample_inputs(19, CPU, generator())
    inputs[0].view(torch.uint8)[3, 130] = 0x7F
    y = launcher(FP8, variant)(*inputs)
    assert y[3].isnan().all()
    assert y[[row for row in range(19) if row != 3]].isfinite().all()


@pytest.mark.parametrize("num_tokens", [1, 13, 67])
@pytest.mark.parametrize("name", ["sm_80", "gfx942"])
def test_fp8_is_served_where_there_is_none(name: str, num_tokens: int, monkeypatch):
    monkeypatch.setattr(gemm_launch, "target_of_device", lambda device: gemm_target(name))
    inputs = FP8.sample_inputs(num_tokens, CPU, generator())
    for error in check(FP8, OP.provider("helion").launcher(FP8), inputs):
        assert error.problem is None, error
