"""How quantized weights are stored, made and read: schemes, codes with their scales, and the layers built of them."""

from parhelion.quantization.codes import quantize_per_block, quantize_per_channel
from parhelion.quantization.linear_weights import LinearWeights, Weights, dequantize, load_linear, weights_of
from parhelion.quantization.scheme import (
    FP8_BLOCK,
    FP8_PER_TOKEN,
    INT8_PER_TOKEN,
    UNQUANTIZED,
    ActivationQuant,
    QuantScheme,
    RequestedQuantization,
    choose_head_scheme,
    choose_scheme,
)
from parhelion.quantization.section import Section

__all__ = [
    "FP8_BLOCK",
    "FP8_PER_TOKEN",
    "INT8_PER_TOKEN",
    "UNQUANTIZED",
    "ActivationQuant",
    "LinearWeights",
    "QuantScheme",
    "RequestedQuantization",
    "Section",
    "Weights",
    "choose_head_scheme",
    "choose_scheme",
    "dequantize",
    "load_linear",
    "quantize_per_block",
    "quantize_per_channel",
    "weights_of",
]
