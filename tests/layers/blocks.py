"""A block's parameters, with random numbers."""

from __future__ import annotations

import torch

from parhelion.layers.decoder_layer import LayerShape, LayerWeights
from parhelion.quantization import LinearWeights, QuantScheme, quantize_per_block, quantize_per_channel


def random_block(
    shape: LayerShape,
    scheme: QuantScheme,
    generator: torch.Generator,
    biased: tuple[str, ...] = (),
    head_norms: bool = True,
) -> LayerWeights:
    """A block whose layers are quantized; ``biased`` names those with a bias."""

    def linear(name: str, rows: int, columns: int) -> LinearWeights:
        weight = torch.randn(rows, columns, generator=generator) / columns**0.5
        bias = torch.randn(rows, generator=generator).to(shape.dtype) if name in biased else None
        if scheme.block is not None:
            return LinearWeights(*quantize_per_block(weight, scheme.block, torch.float8_e4m3fn), bias, scheme)
        assert scheme.weight_dtype is not None
        return LinearWeights(*quantize_per_channel(weight, scheme.weight_dtype), bias, scheme)

    def norm(size: int) -> torch.Tensor:
        return (torch.rand(size, generator=generator) + 0.5).to(shape.dtype)

    heads = shape.num_heads * shape.head_dim
    return LayerWeights(
        norm(shape.hidden_size),
        norm(shape.hidden_size),
        linear("qkv", heads + 2 * shape.num_kv_heads * shape.head_dim, shape.hidden_size),
        linear("out", shape.hidden_size, heads),
        linear("gate_up", 2 * shape.intermediate_size, shape.hidden_size),
        linear("down", shape.hidden_size, shape.intermediate_size),
        norm(shape.head_dim) if head_norms else None,
        norm(shape.head_dim) if head_norms else None,
    )
