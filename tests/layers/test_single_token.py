"""The plan for a single token: what it makes of a block, and that it computes more exactly than quantized products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from parhelion.layers.decoder_layer import STEP_VALUES, LayerShape, LayerWeights, add_norm, layer_calls
from parhelion.layers.fusions import FUSED, FUSED_ON_GPU, SINGLE_TOKEN
from parhelion.layers.program import PLAIN, Call, Plan, Program, cover
from parhelion.ops.all_reduce_rms_norm import AllReduceRmsNorm
from parhelion.ops.paged_attention.sample import places, sample_rows
from parhelion.ops.resolve import Resolver
from parhelion.ops.weight_only_mv import WeightOnlyMv
from parhelion.quantization import (
    FP8_BLOCK,
    FP8_PER_TOKEN,
    INT8_PER_TOKEN,
    UNQUANTIZED,
    LinearWeights,
    QuantScheme,
    dequantize,
)
from tests.layers.blocks import random_block

CPU = torch.device("cpu")
SHAPE = LayerShape(
    hidden_size=128,
    intermediate_size=256,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    epsilon=1e-6,
    block_size=16,
    max_position=64,
    sliding_window=None,
    dtype=torch.bfloat16,
)
EPSILON = SHAPE.epsilon


def block(scheme: QuantScheme, generator: torch.Generator, biased: tuple[str, ...] = ()) -> LayerWeights:
    return random_block(SHAPE, scheme, generator, biased)


def dequantized(weights: LayerWeights) -> LayerWeights:
    """The same block with float32 weights, to be computed in float32."""
    plain = {
        name: LinearWeights(dequantize(linear), None, None, UNQUANTIZED)
        for name in ("qkv", "out", "gate_up", "down")
        if isinstance(linear := getattr(weights, name), LinearWeights)
    }
    norms = {name: getattr(weights, name).float() for name in ("input_norm", "post_attention_norm", "q_norm", "k_norm")}
    return replace(weights, **plain, **norms)


def calls_of(weights: LayerWeights, plan: Plan, is_first: bool = False, shape: LayerShape = SHAPE) -> list[Call]:
    angles = torch.outer(torch.arange(64.0), torch.tensor([100.0 ** (-i / 16) for i in range(16)]))
    return cover(layer_calls(shape, weights, torch.cat((angles.cos(), angles.sin()), dim=-1), is_first), plan)


def names(calls: list[Call]) -> list[str]:
    return [call.contract.name for call in calls]


@pytest.mark.parametrize("scheme", [FP8_PER_TOKEN, INT8_PER_TOKEN], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_block_is_five_launches(scheme: QuantScheme, is_first: bool):
    weights = block(scheme, torch.Generator().manual_seed(1))
    qkv, attention, out, gate_up, down = calls_of(weights, SINGLE_TOKEN, is_first)
    plain = WeightOnlyMv(128, 256, weights.qkv.weight.dtype)
    assert qkv.contract == replace(plain, epsilon=EPSILON, add_residual=not is_first)
    assert attention.contract.name == "fused_rope_attention"
    assert out.contract == replace(plain, out_features=128)
    assert gate_up.contract == replace(plain, epsilon=EPSILON, add_residual=True, gated=True)
    assert down.contract == replace(plain, in_features=256, out_features=128)
    first = ("residual",) if is_first else ("hidden", "residual")
    assert (qkv.inputs, qkv.outputs) == (first, ("qkv",) if is_first else ("qkv", "residual"))
    assert (out.inputs, out.outputs) == (("attended",), ("hidden",))
    assert (gate_up.inputs, gate_up.outputs) == (("hidden", "residual"), ("activated", "residual"))
    # The very tensors that other plans are given: nothing is held twice.
    assert gate_up.weights[0] is weights.post_attention_norm
    for call, linear in ((qkv, weights.qkv), (out, weights.out), (gate_up, weights.gate_up), (down, weights.down)):
        assert call.weights[-2] is linear.weight
        assert call.weights[-1] is linear.scales


def test_what_has_a_bias_stays_as_it_is_elsewhere():
    usual = ["rms_norm_dynamic_per_token_quant", "scaled_mm"]
    found = names(calls_of(block(FP8_PER_TOKEN, torch.Generator(), ("qkv",)), SINGLE_TOKEN))
    assert found == [*usual, "fused_rope_attention", *["weight_only_mv"] * 3]
    found = names(calls_of(block(FP8_PER_TOKEN, torch.Generator(), ("gate_up", "down")), SINGLE_TOKEN))
    assert found[3:] == [*usual, "silu_and_mul_dynamic_per_token_quant", "scaled_mm"]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_sum_over_ranks_stays_between_a_product_and_the_next_norm(num_ranks: int):
    weights = block(INT8_PER_TOKEN, torch.Generator())
    found = names(calls_of(weights, SINGLE_TOKEN, shape=replace(SHAPE, num_ranks=num_ranks)))
    assert len(found) == 3 + 2 * num_ranks
    assert [index for index, name in enumerate(found) if name == "all_reduce"] == ([0, 4] if num_ranks == 2 else [])


@pytest.mark.parametrize("scheme", [INT8_PER_TOKEN, FP8_BLOCK], ids=lambda scheme: scheme.name)
def test_on_a_gpu_a_sum_over_ranks_takes_the_norm_behind_it(scheme: QuantScheme):
    weights = block(scheme, torch.Generator())
    calls = calls_of(weights, FUSED_ON_GPU, shape=replace(SHAPE, num_ranks=2))
    sums = [call.contract for call in calls if call.contract.name.startswith("all_reduce")]
    if scheme is FP8_BLOCK:
        assert [contract.name for contract in sums] == ["all_reduce"] * 2
    else:
        assert sums == [AllReduceRmsNorm(SHAPE.hidden_size, 2, EPSILON, SHAPE.dtype, torch.int8)] * 2
        assert len(calls) == len(calls_of(weights, FUSED_ON_GPU))
    plain = cover(add_norm(SHAPE.hidden_size, EPSILON, SHAPE.dtype, weights.input_norm, 2), FUSED_ON_GPU)
    assert [call.contract for call in plain] == [AllReduceRmsNorm(SHAPE.hidden_size, 2, EPSILON, SHAPE.dtype)]


def test_weights_without_a_scale_a_channel_are_computed_as_elsewhere():
    weights = block(FP8_BLOCK, torch.Generator().manual_seed(1))
    usual, single = (calls_of(weights, plan) for plan in (FUSED_ON_GPU, SINGLE_TOKEN))
    assert [call.contract for call in single] == [call.contract for call in usual]


@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("scheme", [FP8_PER_TOKEN, INT8_PER_TOKEN], ids=lambda scheme: scheme.name)
def test_it_is_closer_to_the_dequantized_weights_than_quantized_activations(scheme: QuantScheme, num_tokens: int):
    generator = torch.Generator().manual_seed(3)
    blocks = [block(scheme, generator) for _ in range(3)]
    embedded = torch.randn(num_tokens, SHAPE.hidden_size, generator=generator).to(SHAPE.dtype)
    heads = (SHAPE.num_heads, SHAPE.num_kv_heads, SHAPE.head_dim, SHAPE.block_size)
    _, cache, attention = sample_rows([1] * num_tokens, [20, 33, 7][:num_tokens], heads, SHAPE.dtype, CPU, generator)
    positions, slots = places(attention, num_tokens, SHAPE.block_size)

    # The batch has no plan for a CPU's own attention.
    resolver = Resolver(CPU, {"paged_attention": "reference", "fused_rope_attention": "reference"})

    def stack(plan: Plan, shape: LayerShape, of: Callable[[LayerWeights], LayerWeights]) -> torch.Tensor:
        """What three blocks leave, their two values added up."""
        values: list[Any] = [None, embedded.to(shape.dtype, copy=True), positions, slots, None, attention, *[None] * 20]
        for index, weights in enumerate(blocks):
            values[4] = cache.to(shape.dtype, copy=True)
            Program(calls_of(of(weights), plan, index == 0, shape), resolver, STEP_VALUES)(values)
        return values[0].double() + values[1].double()

    exact = stack(PLAIN, replace(SHAPE, dtype=torch.float32), dequantized)
    quantized, unquantized = (stack(plan, SHAPE, lambda weights: weights) for plan in (FUSED, SINGLE_TOKEN))

    def error(found: torch.Tensor) -> float:
        return float((found - exact).norm() / exact.norm())

    # bfloat16 between the launches is left: half a step is 0.002, and there are some fifteen roundings.
    assert error(unquantized) < 0.01
    assert 3 * error(unquantized) < error(quantized)
