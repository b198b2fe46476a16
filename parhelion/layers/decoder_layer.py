"""One block of a decoder as a sequence of calls: pre-norm attention, then a gated feed-forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parhelion.layers.linear import linear_calls
from parhelion.layers.program import Call
from parhelion.ops.collectives.all_reduce import AllReduce
from parhelion.ops.contract import Contract
from parhelion.ops.fused_add_rms_norm import FusedAddRmsNorm
from parhelion.ops.fused_qk_norm_rope import FusedQkNormRope
from parhelion.ops.paged_attention import PagedAttention
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.rope_and_cache import RopeAndCache
from parhelion.ops.silu_and_mul import SiluAndMul
from parhelion.quantization import LinearWeights

STEP_VALUES = ("hidden", "residual", "positions", "slot_mapping", "kv_cache", "attention")
"""The values that every layer is given. The first layer's input is its residual, and its hidden is not read."""


@dataclass(frozen=True)
class LayerWeights:
    """Parameters of a block, on the device.

    Attributes:
        input_norm, post_attention_norm: [hidden_size].
        qkv: hidden to (num_heads + 2 * num_kv_heads) * head_dim; queries first, then keys, then values.
        out: num_heads * head_dim to hidden.
        gate_up: hidden to 2 * intermediate, the gate first.
        down: intermediate to hidden.
        q_norm, k_norm: [head_dim], normalization of each head before rotation (Qwen3), or None.
    """

    input_norm: torch.Tensor
    post_attention_norm: torch.Tensor
    qkv: LinearWeights
    out: LinearWeights
    gate_up: LinearWeights
    down: LinearWeights
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None


@dataclass(frozen=True)
class LayerShape:
    """Static dimensions of a block; ``sliding_window`` is this layer's own. With several ranks, heads and intermediate
    size are this rank's.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    epsilon: float
    block_size: int
    max_position: int
    sliding_window: int | None
    dtype: torch.dtype
    num_ranks: int = 1


def layer_calls(shape: LayerShape, weights: LayerWeights, cos_sin: torch.Tensor, is_first: bool) -> list[Call]:
    """The block's computation, one op a call, over ``STEP_VALUES``. Leaves hidden and residual for the next layer's
    norm, or the final one: of several ranks, a part of hidden, which the norm's call adds up first.
    """
    return [*_input_norm(shape, weights.input_norm, is_first), *calls_from_normed(shape, weights, cos_sin)]


def as_later_block(shape: LayerShape, weights: LayerWeights, calls: list[Call]) -> list[Call]:
    """The calls of ``layer_calls`` as they are where the block is not the first."""
    norm = next(position for position, call in enumerate(calls) if "normed" in call.outputs)
    return [*_input_norm(shape, weights.input_norm, is_first=False), *calls[norm + 1 :]]


def calls_from_normed(shape: LayerShape, weights: LayerWeights, cos_sin: torch.Tensor) -> list[Call]:
    """The block without its input norm, over ``STEP_VALUES`` and ``normed``, which is as wide as ``qkv`` takes it."""
    dtype = shape.dtype
    return [
        *linear_calls("normed", "qkv", weights.qkv, dtype),
        _rotate_and_store(shape, weights, cos_sin),
        Call(
            PagedAttention(
                shape.num_heads,
                shape.num_kv_heads,
                shape.head_dim,
                shape.block_size,
                shape.head_dim**-0.5,
                shape.sliding_window,
                dtype=dtype,
            ),
            ("query", "kv_cache", "attention"),
            ("attended",),
        ),
        *linear_calls("attended", "hidden", weights.out, dtype),
        *add_norm(shape.hidden_size, shape.epsilon, dtype, weights.post_attention_norm, shape.num_ranks),
        *linear_calls("normed", "gate_up", weights.gate_up, dtype),
        Call(SiluAndMul(shape.intermediate_size, dtype), ("gate_up",), ("activated",)),
        *linear_calls("activated", "hidden", weights.down, dtype),
    ]


def sum_over_ranks(hidden_size: int, num_ranks: int, dtype: torch.dtype) -> list[Call]:
    """Add up hidden, of which each rank has computed a part; nothing with one rank."""
    if num_ranks == 1:
        return []
    return [Call(AllReduce(hidden_size, num_ranks, dtype), ("hidden",), ("hidden",))]


def add_norm(
    hidden_size: int, epsilon: float, dtype: torch.dtype, weight: torch.Tensor, num_ranks: int = 1
) -> list[Call]:
    """Add hidden, summed over the ranks, to the residual and normalize the sum."""
    norm = FusedAddRmsNorm(hidden_size, epsilon, dtype)
    return [
        *sum_over_ranks(hidden_size, num_ranks, dtype),
        Call(norm, ("hidden", "residual"), ("normed", "residual"), (weight,)),
    ]


def _input_norm(shape: LayerShape, weight: torch.Tensor, is_first: bool) -> list[Call]:
    if is_first:
        return [Call(RmsNorm(shape.hidden_size, shape.epsilon, shape.dtype), ("residual",), ("normed",), (weight,))]
    return add_norm(shape.hidden_size, shape.epsilon, shape.dtype, weight, shape.num_ranks)


def _rotate_and_store(shape: LayerShape, weights: LayerWeights, cos_sin: torch.Tensor) -> Call:
    inputs, outputs = ("qkv", "positions", "slot_mapping", "kv_cache"), ("query", "kv_cache")
    heads = (shape.num_heads, shape.num_kv_heads, shape.head_dim)
    contract: Contract
    if weights.q_norm is None or weights.k_norm is None:
        contract = RopeAndCache(*heads, shape.block_size, shape.max_position, shape.dtype)
        return Call(contract, inputs, outputs, (cos_sin,))
    contract = FusedQkNormRope(*heads, shape.epsilon, shape.block_size, shape.max_position, shape.dtype)
    return Call(contract, inputs, outputs, (cos_sin, weights.q_norm, weights.k_norm))
