"""Weights to codes and back: nearest representable values, by channel and by block."""

from __future__ import annotations

import pytest
import torch

from parhelion.quantization import codes as codes_module
from parhelion.quantization import quantize_per_block, quantize_per_channel
from parhelion.quantization.codes import expand_block_scales
from tests.quantization.memory_weights import normal

FP8 = torch.float8_e4m3fn
DTYPES = [FP8, torch.int8]


def grid(dtype: torch.dtype) -> torch.Tensor:
    """Every value that a code may stand for, ascending, float64."""
    if dtype == torch.int8:
        return torch.arange(-127, 128).double()
    values = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(FP8).double()
    return values[values.isfinite()].sort().values


def nearest_distance(scaled: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """How far each value is from the nearest code's, by looking at all of them."""
    return (scaled[..., None] - grid(dtype)).abs().amin(-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_channels_use_the_whole_range_and_the_nearest_codes(dtype: torch.dtype, stored: torch.dtype):
    weight = normal(37, 53).to(stored)
    codes, scales = quantize_per_channel(weight, dtype)
    assert (codes.dtype, codes.shape) == (dtype, (37, 53))
    assert (scales.dtype, scales.shape) == (torch.float32, (37, 1))
    largest = grid(dtype).max()
    assert torch.equal(codes.double().abs().amax(1), largest.expand(37))
    torch.testing.assert_close(
        scales.double(), weight.double().abs().amax(1, keepdim=True) / largest, rtol=3e-7, atol=0
    )
    scaled = weight.double() / scales.double()
    # Scaling in float32 may move a value past the middle between two codes by its rounding: 2**-22 of 448 at most.
    assert ((codes.double() - scaled).abs() - nearest_distance(scaled, dtype)).max() < 2e-4


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_weight_is_quantized_in_parts_to_the_same_codes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    weight = normal(11, 16).bfloat16()
    whole = quantize_per_channel(weight, dtype)
    for most in (1, 48):
        monkeypatch.setattr(codes_module, "_MOST_ELEMENTS", most)
        codes, scales = quantize_per_channel(weight, dtype)
        assert torch.equal(codes.view(torch.uint8), whole[0].view(torch.uint8))
        assert torch.equal(scales, whole[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_round_trip_is_within_half_a_step(dtype: torch.dtype):
    weight = normal(64, 96)
    codes, scales = quantize_per_channel(weight, dtype)
    error = (codes.float() * scales - weight).abs()
    # Three mantissa bits: half a step is 2**-4 of the value, and 2**-10 below the smallest normal code.
    bound = (weight.abs() / 16 + scales / 1024) if dtype == FP8 else scales / 2
    assert (error <= bound * 1.001).all()
    assert error.square().mean().sqrt() / weight.square().mean().sqrt() < (0.03 if dtype == FP8 else 0.01)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(256, 128), (300, 200), (1, 1), (128, 129)])
def test_each_block_is_quantized_by_itself(dtype: torch.dtype, shape: tuple[int, int]):
    weight = normal(*shape)
    codes, scales = quantize_per_block(weight, 128, dtype)
    assert codes.shape == shape
    assert scales.shape == (-(-shape[0] // 128), -(-shape[1] // 128))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            here = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
            block = weight[here].reshape(1, -1)
            expected, scale = quantize_per_channel(block, dtype)
            assert torch.equal(codes[here].reshape(1, -1).view(torch.uint8), expected.view(torch.uint8))
            assert scales[i, j] == scale


def test_block_scales_expand_to_the_elements_they_cover():
    scales = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expanded = expand_block_scales(scales, 128, 130, 200)
    assert expanded.shape == (130, 200)
    assert (expanded[:128, :128] == 1).all()
    assert (expanded[:128, 128:] == 2).all()
    assert (expanded[128:, :128] == 3).all()
    assert (expanded[128:, 128:] == 4).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_have_zero_codes_and_positive_scales(dtype: torch.dtype):
    for quantize in (quantize_per_channel, lambda w, d: quantize_per_block(w, 128, d)):
        codes, scales = quantize(torch.zeros(3, 4), dtype)
        assert (codes.float() == 0).all()
        assert (scales > 0).all()


def test_inputs_are_left_as_they_were():
    weight = normal(5, 7)
    before = weight.clone()
    quantize_per_channel(weight, torch.int8)
    quantize_per_block(weight)
    assert torch.equal(weight, before)
