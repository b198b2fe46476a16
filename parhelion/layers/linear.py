"""Linear layers as calls: what a quantization scheme makes of ``y = x @ weight.T + bias``."""

from __future__ import annotations

import torch

from parhelion.layers.program import Call
from parhelion.ops.contract import Contract
from parhelion.ops.dynamic_per_token_scaled_fp8_quant import DynamicPerTokenScaledFp8Quant
from parhelion.ops.dynamic_per_token_scaled_int8_quant import DynamicPerTokenScaledInt8Quant
from parhelion.ops.linear import Linear
from parhelion.ops.per_token_group_fp8_quant import PerTokenGroupFp8Quant
from parhelion.ops.scaled_mm import ScaledMm
from parhelion.ops.scaled_mm_blockwise import ScaledMmBlockwise
from parhelion.ops.weight_only_mm import WeightOnlyMm
from parhelion.platform.device import has_float8
from parhelion.quantization import UNQUANTIZED, LinearWeights, dequantize


def linear_calls(source: str, target: str, weights: LinearWeights, dtype: torch.dtype) -> list[Call]:
    """The calls that compute value ``target`` [M, N] from value ``source`` [M, K], both of ``dtype``.

    A quantized layer is two: its input is quantized, then multiplied. Where the device has no 8-bit floats, FP8 weights
    with a scale a channel are multiplied by unquantized activations, and those with a scale a block are dequantized.
    """
    if weights.scheme.activation == "fp8_per_group" and not has_float8(weights.weight.device):
        weights = LinearWeights(dequantize(weights).to(dtype), None, weights.bias, UNQUANTIZED)
    out_features, in_features = weights.weight.shape
    activation = weights.scheme.activation
    bias = () if weights.bias is None else (weights.bias,)
    if activation == "none":
        contract: Contract = Linear(in_features, out_features, dtype, bool(bias))
        return [Call(contract, (source,), (target,), (weights.weight, *bias))]
    assert weights.scales is not None
    parameters = (weights.weight, weights.scales, *bias)
    if activation == "fp8_per_token" and not has_float8(weights.weight.device):
        return [Call(WeightOnlyMm(in_features, out_features, dtype, bool(bias)), (source,), (target,), parameters)]
    codes, scales = f"{source}.codes", f"{source}.scales"
    quantize: Contract
    if activation == "fp8_per_group":
        quantize = PerTokenGroupFp8Quant(in_features, dtype)
        contract = ScaledMmBlockwise(in_features, out_features, dtype, bias=bool(bias))
    elif activation == "fp8_per_token":
        quantize = DynamicPerTokenScaledFp8Quant(in_features, dtype)
        contract = ScaledMm(in_features, out_features, torch.float8_e4m3fn, dtype, bool(bias))
    else:
        quantize = DynamicPerTokenScaledInt8Quant(in_features, dtype)
        contract = ScaledMm(in_features, out_features, torch.int8, dtype, bool(bias))
    return [Call(quantize, (source,), (codes, scales)), Call(contract, (codes, scales), (target,), parameters)]
