"""What models need of the ops."""

from __future__ import annotations

import pytest
import torch

from parhelion.errors import ConfigError
from parhelion.ops.fused_qk_norm_rope import FusedQkNormRope
from parhelion.ops.linear import Linear
from parhelion.ops.registry import op_names, ops
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.scaled_mm import ScaledMm
from parhelion.ops.scaled_mm_blockwise import ScaledMmBlockwise
from parhelion.ops.weight_only_mm import WeightOnlyMm
from parhelion.quantization import FP8_BLOCK, FP8_PER_TOKEN, UNQUANTIZED
from parhelion.tuning.model_contracts import (
    SCHEMES,
    contracts_of,
    contracts_of_models,
    kind,
    reduced,
    scheme,
    with_uncalled_kinds,
    with_uncalled_ops,
)
from parhelion.tuning.model_shapes import MODEL_SHAPES, model_shape

QWEN3 = model_shape("qwen3-8b")


def test_an_unquantized_model_needs_its_four_projections_and_its_head():
    linear = {(c.out_features, c.in_features) for c in contracts_of(QWEN3, UNQUANTIZED) if isinstance(c, Linear)}
    assert linear == {(6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288), (151936, 4096)}


def test_a_quantized_model_needs_scaled_products_and_their_replacement_without_8_bit_floats():
    contracts = contracts_of(QWEN3, FP8_PER_TOKEN)
    scaled = {(c.out_features, c.in_features) for c in contracts if isinstance(c, ScaledMm)}
    widened = {(c.out_features, c.in_features) for c in contracts if isinstance(c, WeightOnlyMm)}
    assert scaled == widened == set(QWEN3.projections)
    assert all(c.quant_dtype == torch.float8_e4m3fn for c in contracts if isinstance(c, ScaledMm))


def test_both_plans_are_covered():
    names = {contract.name for contract in contracts_of(QWEN3, FP8_PER_TOKEN)}
    assert {"fused_add_rms_norm", "dynamic_per_token_scaled_fp8_quant", "silu_and_mul"} <= names
    assert {"rms_norm_dynamic_per_token_quant", "silu_and_mul_dynamic_per_token_quant"} <= names


def test_head_norms_and_biases_follow_the_architecture():
    assert any(isinstance(contract, FusedQkNormRope) for contract in contracts_of(QWEN3, UNQUANTIZED))
    qwen2 = contracts_of(model_shape("qwen2.5-7b"), UNQUANTIZED)
    assert not any(isinstance(contract, FusedQkNormRope) for contract in qwen2)
    assert [c.out_features for c in qwen2 if isinstance(c, Linear) and c.bias] == [(28 + 2 * 4) * 128]


def test_a_model_whose_sizes_are_no_multiples_of_a_block_is_left_out_of_block_quantization():
    blockwise = [
        c for c in contracts_of_models([model_shape("smollm2-135m")], SCHEMES) if isinstance(c, ScaledMmBlockwise)
    ]
    assert all(contract.in_features != 576 for contract in blockwise)
    assert any(isinstance(c, ScaledMmBlockwise) for c in contracts_of_models([QWEN3], [FP8_BLOCK]))


@pytest.mark.parametrize("extend", [with_uncalled_ops, with_uncalled_kinds])
def test_every_op_is_covered_and_no_contract_twice(extend):
    contracts = extend(contracts_of_models(MODEL_SHAPES, SCHEMES))
    assert {contract.name for contract in contracts} == set(op_names())
    assert len(set(contracts)) == len(contracts)


def test_every_kind_of_every_example_is_covered():
    kinds = {kind(contract) for contract in with_uncalled_kinds(contracts_of_models([QWEN3], SCHEMES))}
    assert {kind(example) for op in ops() for example in op.examples} <= kinds


def test_the_reduced_list_keeps_what_differs_in_more_than_sizes():
    contracts = [RmsNorm(64), RmsNorm(128), RmsNorm(64, dtype=torch.float32), Linear(8, 8), Linear(8, 8, bias=True)]
    assert reduced(contracts) == [contracts[0], contracts[3], contracts[4]]


@pytest.mark.parametrize(("look_up", "name"), [(model_shape, "gpt-2"), (scheme, "int3")])
def test_unknown_names_are_refused_with_those_that_exist(look_up, name: str):
    with pytest.raises(ConfigError, match=name):
        look_up(name)
