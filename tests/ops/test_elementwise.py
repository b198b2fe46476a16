"""Norms and the gated activation as they serve on a CPU, by ATen's kernels, against float64 formulas."""

from __future__ import annotations

import pytest
import torch

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.fused_add_rms_norm import FusedAddRmsNorm
from parhelion.ops.registry import op
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.silu_and_mul import SiluAndMul

FLOATS = (torch.float32, torch.bfloat16)


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bind(contract: Contract, *weights: torch.Tensor) -> Launcher:
    return op(contract.name).provider("torch").bind(contract, *weights)


def near(result: torch.Tensor, oracle: torch.Tensor, units: float) -> None:
    """Within some units in the last place of the result's dtype, relative to values of about one."""
    unit = torch.finfo(result.dtype).eps
    torch.testing.assert_close(result.double(), oracle, rtol=units * unit, atol=units * unit)


def rms_norm_float64(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 576), (7, 33), (5, 3, 64)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...], scale: float) -> None:
    """Of rows, and of the heads of rows, which ``fused_qk_norm_rope`` norms by the same kernels."""
    x, weight = randn(*shape, dtype=dtype) * scale, randn(shape[-1], dtype=dtype, seed=1)
    result = bind(RmsNorm(shape[-1], 1e-5, dtype), weight)(x)
    assert result.dtype == dtype
    # float32 rounds each of a few operations. bfloat16 is normed in float32 and rounded, and once more by the weight.
    near(result, rms_norm_float64(x, weight, 1e-5), 8 if dtype == torch.float32 else 1.1)


def test_rms_norm_of_zeros_is_zero_and_not_nan() -> None:
    assert torch.equal(bind(RmsNorm(8, 1e-6, torch.float32), torch.ones(8))(torch.zeros(2, 8)), torch.zeros(2, 8))


def test_rms_norm_leaves_its_input_alone() -> None:
    x = randn(3, 8)
    before = x.clone()
    bind(RmsNorm(8, 1e-6, torch.float32), randn(8, seed=1))(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_fused_add_rms_norm_adds_in_place_and_norms_the_sum(dtype: torch.dtype) -> None:
    x, residual, weight = (
        randn(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(((6, 48), (6, 48), (48,)))
    )
    total = x + residual
    normed, returned = bind(FusedAddRmsNorm(48, 1e-5, dtype), weight)(x, residual)
    assert returned is residual
    assert torch.equal(residual, total)
    near(normed, rms_norm_float64(total, weight, 1e-5), 8 if dtype == torch.float32 else 1.1)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 2), (5, 96), (64, 3072)])
def test_silu_and_mul(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x = randn(*shape, dtype=dtype) * 4
    gate, up = x.double().chunk(2, dim=-1)
    result = bind(SiluAndMul(shape[1] // 2, dtype))(x)
    assert result.dtype == dtype
    # In bfloat16 the activation is rounded before it is multiplied, and the product once more.
    near(result, gate / (1 + (-gate).exp()) * up, 8 if dtype == torch.float32 else 2)


def test_silu_and_mul_of_far_values_stays_finite() -> None:
    launch = bind(SiluAndMul(2, torch.float32))
    assert torch.equal(launch(torch.tensor([[-1e4, 1e4, 2.0, 3.0]])), torch.tensor([[0.0, 3e4]]))
