"""Norms, the gated activation and rotation against float64 formulas."""

from __future__ import annotations

import pytest
import torch

from parhelion.layers.rotary import RotaryTables
from parhelion.ops.elementwise import fused_add_rms_norm, rms_norm
from parhelion.ops.rotary_embedding import rotary_embedding
from parhelion.ops.silu_and_mul import silu_and_mul

FLOATS = (torch.float32, torch.bfloat16)


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def near(result: torch.Tensor, oracle: torch.Tensor, units: float) -> None:
    """Within some units in the last place of the result's dtype, relative to values of about one."""
    unit = torch.finfo(result.dtype).eps
    torch.testing.assert_close(result.double(), oracle, rtol=units * unit, atol=units * unit)


def rms_norm_float64(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 576), (7, 33), (5, 3, 64)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...], scale: float) -> None:
    x, weight = randn(*shape, dtype=dtype) * scale, randn(shape[-1], seed=1)
    result = rms_norm(x, weight, 1e-5)
    assert result.dtype == dtype
    # bfloat16 is rounded once, at the end, because the arithmetic is float32; float32 rounds each of a few operations.
    near(result, rms_norm_float64(x, weight, 1e-5), 8 if dtype == torch.float32 else 0.51)


def test_rms_norm_of_zeros_is_zero_and_not_nan() -> None:
    assert torch.equal(rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6), torch.zeros(2, 8))


@pytest.mark.parametrize("dtype", FLOATS)
def test_fused_add_rms_norm_adds_in_place_and_norms_the_sum(dtype: torch.dtype) -> None:
    x, residual, weight = randn(6, 48, dtype=dtype), randn(6, 48, dtype=dtype, seed=1), randn(48, seed=2)
    total = x + residual
    normed, returned = fused_add_rms_norm(x, residual, weight, 1e-5)
    assert returned is residual
    assert torch.equal(residual, total)
    near(normed, rms_norm_float64(total, weight, 1e-5), 8 if dtype == torch.float32 else 0.51)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 2), (5, 96), (2, 3, 64)])
def test_silu_and_mul(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = randn(*shape, dtype=dtype) * 4
    gate, up = x.double().chunk(2, dim=-1)
    result = silu_and_mul(x.clone())
    assert result.dtype == dtype
    # In bfloat16 the activation is rounded before it is multiplied, and the product once more.
    near(result, gate / (1 + (-gate).exp()) * up, 8 if dtype == torch.float32 else 2)


def test_silu_and_mul_of_far_values_stays_finite() -> None:
    assert torch.equal(silu_and_mul(torch.tensor([[-1e4, 1e4, 2.0, 3.0]])), torch.tensor([[0.0, 3e4]]))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("head_dim", [2, 16, 64])
def test_rotary_embedding_turns_each_pair_by_its_angle(dtype: torch.dtype, head_dim: int) -> None:
    frequencies = 100.0 ** -(torch.arange(0, head_dim, 2).float() / head_dim)
    positions = torch.tensor([0, 1, 17, 99])
    x = randn(len(positions), 3, head_dim, dtype=dtype)
    tables = RotaryTables(frequencies, 100, dtype)
    cos, sin = tables.at(positions)
    assert cos.shape == sin.shape == (len(positions), 1, head_dim)
    result = rotary_embedding(x.clone(), cos, sin)
    # A pair (i, i + head_dim / 2) is one complex number, and turning it a product with exp(i * angle).
    first, second = x.double().chunk(2, dim=-1)
    angles = positions[:, None].double() * frequencies.double()
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)[:, None, :]
    # float32 angles of up to 99 radians are known to 4e-6; in bfloat16 the tables, products and sum are rounded.
    near(result, torch.cat((turned.real, turned.imag), dim=-1), 150 if dtype == torch.float32 else 4)
    assert torch.equal(result[0], x[0]), "position 0 is not turned"


def test_rotated_queries_and_keys_meet_by_their_distance_only() -> None:
    tables = RotaryTables(10000.0 ** -(torch.arange(0, 32, 2).float() / 32), 2000, torch.float32)
    query, key = randn(1, 1, 32), randn(1, 1, 32, seed=1)

    def score(query_position: int, key_position: int) -> torch.Tensor:
        rotated_query = rotary_embedding(query.clone(), *tables.at(torch.tensor([query_position])))
        rotated_key = rotary_embedding(key.clone(), *tables.at(torch.tensor([key_position])))
        return (rotated_query * rotated_key).sum()

    # Angles near 2000 radians are rounded to 1e-4 in float32.
    torch.testing.assert_close(score(1900, 1893), score(7, 0), rtol=0, atol=5e-3)
    assert abs(float(score(8, 0) - score(7, 0))) > 0.05
