"""Layers out of tensors: stacked, quantized as stored or while loading, and refused where the two disagree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from parhelion.errors import CheckpointError
from parhelion.quantization import (
    FP8_BLOCK,
    FP8_PER_TOKEN,
    INT8_PER_TOKEN,
    UNQUANTIZED,
    LinearWeights,
    QuantScheme,
    dequantize,
    load_linear,
    quantize_per_block,
    quantize_per_channel,
)
from tests.quantization.memory_weights import MemoryWeights, normal

CPU = torch.device("cpu")
NAMES = ("a.q_proj", "a.k_proj", "a.v_proj")
ROWS = (256, 128, 72)
IN = 200


def floats() -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight": normal(count, IN, seed=i) for i, (name, count) in enumerate(zip(NAMES, ROWS, strict=True))
    }


def stored(scheme: QuantScheme) -> dict[str, torch.Tensor]:
    """The float tensors as codes and scales in a scheme's form."""
    tensors = {}
    for name, weight in floats().items():
        assert scheme.weight_dtype is not None
        if scheme.block is None:
            codes, scales = quantize_per_channel(weight, scheme.weight_dtype)
        else:
            codes, scales = quantize_per_block(weight, scheme.block)
        tensors[name] = codes
        tensors[f"{name.removesuffix('weight')}{scheme.scale_name}"] = scales
    return tensors


def load(
    tensors: dict[str, torch.Tensor],
    scheme: QuantScheme,
    names: tuple[str, ...] = NAMES,
    rows: tuple[int, ...] = ROWS,
    bias: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> LinearWeights:
    return load_linear(MemoryWeights(tensors), scheme, names, rows, IN, bias, dtype, CPU)


def test_plain_weights_are_stacked_in_order_and_in_the_engines_dtype():
    tensors = floats() | {f"{name}.bias": normal(count, seed=9) for name, count in zip(NAMES, ROWS, strict=True)}
    linear = load(tensors, UNQUANTIZED, bias=True)
    assert torch.equal(linear.weight, torch.cat(list(floats().values())).bfloat16())
    assert linear.bias is not None
    assert torch.equal(linear.bias, torch.cat([tensors[f"{name}.bias"] for name in NAMES]).bfloat16())
    assert linear.scales is None
    assert linear.scheme is UNQUANTIZED


@pytest.mark.parametrize("scheme", [FP8_PER_TOKEN, INT8_PER_TOKEN, FP8_BLOCK])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_stored_codes_and_scales_are_stacked_alike(scheme: QuantScheme, scale_dtype: torch.dtype):
    tensors = stored(scheme)
    for name in NAMES:
        tensors[f"{name}.{scheme.scale_name}"] = tensors[f"{name}.{scheme.scale_name}"].to(scale_dtype)
    whole = load(tensors, scheme)
    assert whole.weight.dtype == scheme.weight_dtype
    assert whole.weight.shape == (sum(ROWS), IN)
    assert whole.scales is not None
    assert whole.scales.dtype == torch.float32
    assert whole.scales.shape == ((sum(ROWS), 1) if scheme.block is None else (4, 2))
    parts = [load(tensors, scheme, (name,), (count,)) for name, count in zip(NAMES, ROWS, strict=True)]
    assert torch.equal(dequantize(whole), torch.cat([dequantize(part) for part in parts]))
    # bfloat16 scales are off by 2**-9; eight-bit codes by 2**-4 of the value or by half a step of a channel.
    source = torch.cat(list(floats().values()))
    steps = whole.scales.amax() / 2 if scheme.weight_dtype == torch.int8 else whole.scales.amax() / 1024
    assert ((dequantize(whole) - source).abs() <= source.abs() * (2**-4 + 2**-8) + steps * 1.01).all()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_scale_a_tensor_becomes_one_a_channel(shape: tuple[int, ...]):
    class AnyShapeOfOne(MemoryWeights):
        def get(self, name: str, *wanted: int) -> torch.Tensor:
            tensor = self._tensors[name]
            return tensor.reshape(wanted) if tensor.numel() == 1 else super().get(name, *wanted)

    tensors = {}
    for i, name in enumerate(NAMES):
        tensors[f"{name}.weight"] = (normal(ROWS[i], IN) * 1000).to(torch.float8_e4m3fn)
        tensors[f"{name}.weight_scale"] = torch.full(shape, 0.5 + i)
    scheme = replace(FP8_PER_TOKEN, scale_per_tensor=True)
    linear = load_linear(AnyShapeOfOne(tensors), scheme, NAMES, ROWS, IN, False, torch.bfloat16, CPU)
    assert linear.scales is not None
    assert linear.scales.is_contiguous()
    assert linear.scales.flatten().tolist() == [0.5] * 256 + [1.5] * 128 + [2.5] * 72


@pytest.mark.parametrize("scheme", [FP8_PER_TOKEN, INT8_PER_TOKEN, FP8_BLOCK])
@pytest.mark.parametrize("stored_dtype", [torch.float32, torch.bfloat16])
def test_quantizing_while_loading_equals_loading_quantized(scheme: QuantScheme, stored_dtype: torch.dtype):
    tensors = {name: weight.to(stored_dtype) for name, weight in floats().items()}
    linear = load(tensors, replace(scheme, source="load"))
    assert linear.weight.dtype == scheme.weight_dtype
    error = (dequantize(linear) - torch.cat(list(tensors.values())).float()).square().mean().sqrt()
    # Rounding to three mantissa bits has a relative error of about 2**-5; to 127 steps of four deviations, 1%.
    assert error / 0.02 < (0.012 if scheme.weight_dtype == torch.int8 else 0.035)
    if stored_dtype == torch.float32:
        assert torch.equal(dequantize(linear), dequantize(load(stored(scheme), scheme)))


def test_an_ignored_layer_keeps_plain_weights():
    scheme = replace(FP8_PER_TOKEN, ignored=("re:a\\.",))
    linear = load(floats(), scheme)
    assert linear.scheme is UNQUANTIZED
    assert torch.equal(linear.weight, torch.cat(list(floats().values())).bfloat16())
    assert torch.equal(dequantize(linear), linear.weight.float())


def test_projections_that_are_not_quantized_alike_are_refused():
    scheme = replace(FP8_PER_TOKEN, ignored=("a.k_proj",))
    with pytest.raises(CheckpointError, match=r"computed as one layer, but fp8_per_token leaves out only a\.k_proj"):
        load(floats(), scheme)


def test_blocks_that_would_straddle_two_projections_are_refused():
    rows = (72, 128, 256)
    with pytest.raises(CheckpointError, match=r"a\.q_proj has 72 rows, which is no multiple of the 128"):
        load({}, FP8_BLOCK, rows=rows)


def test_weights_in_another_form_than_the_configuration_says_are_refused():
    codes = stored(FP8_PER_TOKEN)
    with pytest.raises(CheckpointError, match=r"stored as float8_e4m3fn, but the configuration \(unquantized\)"):
        load(codes, UNQUANTIZED)
    with pytest.raises(CheckpointError, match=r"stored as float8_e4m3fn, but the configuration \(fp8_per_token\)"):
        load(codes, replace(FP8_PER_TOKEN, ignored=NAMES))
    with pytest.raises(CheckpointError, match=r"stored as float32, and a\.q_proj\.weight_scale is missing"):
        load(floats(), FP8_PER_TOKEN)
    with pytest.raises(CheckpointError, match=r"stored as float8_e4m3fn.*is there.*codes in int8"):
        load(codes, INT8_PER_TOKEN)
    with pytest.raises(CheckpointError, match=r"stored as float8_e4m3fn"):
        load(codes, replace(INT8_PER_TOKEN, source="load"))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_quantized(wrong: float):
    tensors = floats()
    tensors["a.k_proj.weight"][3, 4] = wrong
    with pytest.raises(CheckpointError, match=r"a\.k_proj\.weight holds values that are not finite"):
        load(tensors, replace(INT8_PER_TOKEN, source="load"))


def test_each_tensor_is_read_once():
    weights = MemoryWeights(stored(FP8_PER_TOKEN))
    load_linear(weights, FP8_PER_TOKEN, NAMES, ROWS, IN, False, torch.bfloat16, CPU)
    assert sorted(weights.asked) == sorted(stored(FP8_PER_TOKEN))
