"""The contracts of row ops: references beside independent formulas in float64, traffic, what they refuse."""

from __future__ import annotations

import pytest
import torch

from parhelion.ops.contract import Contract, as_tuple
from parhelion.ops.dynamic_per_token_scaled_fp8_quant import DynamicPerTokenScaledFp8Quant
from parhelion.ops.dynamic_per_token_scaled_int8_quant import DynamicPerTokenScaledInt8Quant
from parhelion.ops.fused_add_rms_norm import FusedAddRmsNorm
from parhelion.ops.per_token_group_fp8_quant import PerTokenGroupFp8Quant
from parhelion.ops.quantize import FP8, LEAST_AMAX, per_group_quantized, per_token_quantized, power_of_two_scales_of
from parhelion.ops.registry import op
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.rms_norm_dynamic_per_token_quant import RmsNormDynamicPerTokenQuant
from parhelion.ops.rms_norm_per_block_quant import RmsNormPerBlockQuant
from parhelion.ops.silu_and_mul import SiluAndMul
from parhelion.ops.silu_and_mul_per_block_quant import SiluAndMulPerBlockQuant
from tests.ops.row_oracle import expected_values, within_half_a_step

CPU = torch.device("cpu")

ROW_OPS = (
    "rms_norm",
    "fused_add_rms_norm",
    "rms_norm_dynamic_per_token_quant",
    "rms_norm_per_block_quant",
    "silu_and_mul",
    "silu_and_mul_dynamic_per_token_quant",
    "silu_and_mul_per_block_quant",
    "dynamic_per_token_scaled_fp8_quant",
    "per_token_group_fp8_quant",
    "dynamic_per_token_scaled_int8_quant",
)

EXAMPLES = [contract for name in ROW_OPS for contract in op(name).examples[:3]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("contract", EXAMPLES, ids=lambda contract: contract.key())
def test_the_reference_agrees_with_an_independent_formula(contract: Contract):
    inputs = contract.sample_inputs(5, CPU, generator())
    want = expected_values(contract, inputs)
    outputs = as_tuple(contract.reference(*inputs))
    if contract.outputs[0].scales is not None:
        assert within_half_a_step(outputs[0], outputs[1], want)
    else:
        # Half a step of bfloat16; float32's own rounding.
        bound = {torch.bfloat16: 2**-9, torch.float32: 2**-22}[contract.dtype]
        assert torch.linalg.vector_norm(outputs[0].double() - want) <= bound * torch.linalg.vector_norm(want)


@pytest.mark.parametrize("contract", EXAMPLES, ids=lambda contract: contract.key())
def test_float64_inputs_are_computed_in_float64(contract: Contract):
    inputs = tuple(x.double() for x in contract.sample_inputs(3, CPU, generator()))
    outputs = as_tuple(contract.reference(*inputs))
    for output, promised in zip(outputs, contract.outputs, strict=True):
        assert output.dtype == torch.float64 or promised.scales is not None


@pytest.mark.parametrize("contract", EXAMPLES, ids=lambda contract: contract.key())
def test_the_reference_leaves_its_inputs_alone(contract: Contract):
    inputs = contract.sample_inputs(3, CPU, generator())
    before = [x.clone() for x in inputs]
    contract.reference(*inputs)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize("contract", EXAMPLES, ids=lambda contract: contract.key())
def test_the_reference_provider_writes_what_the_contract_says_is_mutated(contract: Contract):
    inputs = contract.sample_inputs(3, CPU, generator())
    expected = as_tuple(contract.reference(*inputs))
    outputs = as_tuple(op(contract.name).provider("reference").launcher(contract)(*inputs))
    assert len(outputs) == len(contract.outputs)
    for position, output in zip(contract.mutated, outputs[len(outputs) - len(contract.mutated) :], strict=True):
        assert output is inputs[position]
        assert torch.equal(output, expected[-1])


@pytest.mark.parametrize("contract", EXAMPLES, ids=lambda contract: contract.key())
def test_traffic_is_every_input_read_once_and_every_output_written_once(contract: Contract):
    inputs = contract.sample_inputs(7, CPU, generator())
    outputs = as_tuple(contract.reference(*inputs))
    assert contract.traffic(7).bytes == sum(x.numel() * x.itemsize for x in (*inputs, *outputs))


def test_traffic_by_hand():
    # 10 rows of 256 bfloat16, read and written, and a weight; per row of codes 256 bytes, and 2 float32 scales a row.
    assert RmsNorm(256).traffic(10).bytes == 10 * 256 * 2 * 2 + 256 * 2
    assert FusedAddRmsNorm(256).traffic(10).bytes == 10 * 256 * 2 * 4 + 256 * 2
    assert RmsNormDynamicPerTokenQuant(256).traffic(10).bytes == 10 * (512 + 256 + 4) + 512
    assert RmsNormPerBlockQuant(256, add_residual=True).traffic(10).bytes == 10 * (3 * 512 + 256 + 8) + 512
    assert SiluAndMul(256).traffic(10).bytes == 10 * 3 * 512
    assert SiluAndMulPerBlockQuant(256).traffic(10).bytes == 10 * (1024 + 256 + 8)
    assert DynamicPerTokenScaledInt8Quant(256, torch.float32).traffic(10).bytes == 10 * (1024 + 256 + 4)
    assert PerTokenGroupFp8Quant(256, group_size=64).traffic(10).bytes == 10 * (512 + 256 + 16)


def test_outputs_and_mutated_inputs_depend_on_the_residual():
    for kind in (RmsNormDynamicPerTokenQuant, RmsNormPerBlockQuant):
        assert [output.name for output in kind(128).outputs] == ["codes", "scales"]
        assert kind(128).mutated == ()
        assert [output.name for output in kind(128, add_residual=True).outputs] == ["codes", "scales", "residual"]
        assert kind(128, add_residual=True).mutated == (1,)


@pytest.mark.parametrize("quant_dtype", [FP8, torch.int8])
def test_a_row_of_zeros_has_the_least_scale_and_zero_codes(quant_dtype: torch.dtype):
    codes, scales = per_token_quantized(torch.zeros(2, 8), quant_dtype)
    assert (codes.float() == 0).all()
    assert scales.flatten().tolist() == pytest.approx([LEAST_AMAX / (448 if quant_dtype == FP8 else 127)] * 2, rel=1e-6)


def test_fp8_codes_of_the_largest_magnitude_are_448_and_int8_codes_127():
    x = torch.tensor([[-3.7, 1.0, 3.7]])
    assert per_token_quantized(x, FP8)[0].float().tolist()[0][::2] == [-448, 448]
    assert per_token_quantized(x, torch.int8)[0].tolist()[0][::2] == [-127, 127]


def test_a_row_with_a_nan_or_an_infinity_dequantizes_to_nothing_finite_and_spares_the_others():
    for bad in (float("nan"), float("inf"), -float("inf")):
        for quant_dtype in (FP8, torch.int8):
            x = torch.ones(2, 8)
            x[1, 3] = bad
            codes, scales = per_token_quantized(x, quant_dtype)
            dequantized = codes.float() * scales
            assert torch.allclose(dequantized[0], torch.ones(8))
            assert not dequantized[1].isfinite().any()


def test_ue8m0_scales_are_the_least_powers_of_two_that_do_not_saturate():
    # Across the borders of the mantissa (448 = 1.75 * 2^8) and a range of exponents.
    edges = [448.0, 448.001, 447.999, 449.0, 256.0, 511.0, 1.0, 1.75, 1.7500001, 1e-9, 3e20]
    x = torch.tensor(edges)[:, None] * torch.tensor([[1.0, -0.3, 0.01, 0.0]])
    codes, scales = per_group_quantized(x, 4, "ue8m0")
    mantissas, _ = torch.frexp(scales)
    assert (mantissas == 0.5).all()
    assert (x.abs().amax(-1) <= 448 * scales[:, 0]).all()
    assert (x.abs().amax(-1) > 448 * scales[:, 0] / 2).all()
    assert (codes.float().abs() <= 448).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_power_of_two_scales_are_exact_for_every_mantissa(dtype: torch.dtype):
    borders = torch.tensor([0x5FFFFF, 0x600000, 0x600001, 0x7FFFFF], dtype=torch.int32)  # about 1.75, and below 2
    mantissas = torch.cat([torch.arange(2**16, dtype=torch.int32) << 7, borders])
    for exponent in (100, 127, 135, 200):
        amax = (mantissas + (exponent << 23)).view(torch.float32).to(dtype)
        mantissa, power = torch.frexp(amax)  # amax = mantissa * 2 ** power, mantissa in [0.5, 1); 448 is 0.875 * 2 ** 9
        expected = torch.ldexp(torch.ones_like(amax), torch.where(mantissa <= 0.875, power - 9, power - 8))
        assert torch.equal(power_of_two_scales_of(amax), expected)


def test_power_of_two_scales_of_nan_and_infinity_are_themselves():
    scales = power_of_two_scales_of(torch.tensor([float("inf"), float("nan"), 0.0]))
    assert scales[0] == float("inf")
    assert scales[1].isnan()
    assert scales[2] == 2.0**-42  # the least one that holds 1e-10 / 448 = 2^-42.03


def test_groups_that_do_not_divide_the_row_are_refused():
    for kind in (PerTokenGroupFp8Quant, RmsNormPerBlockQuant, SiluAndMulPerBlockQuant):
        with pytest.raises(ValueError, match="does not split into groups of 128"):
            kind(200)
        with pytest.raises(ValueError, match="power of two"):
            kind(192, group_size=96)


def test_the_fused_contracts_are_compositions_of_their_parts_in_float32():
    # With float32 activations nothing is rounded in between, so the plan's parts one by one give the same codes.
    x, residual, weight = FusedAddRmsNorm(256, dtype=torch.float32).sample_inputs(4, CPU, generator())
    y, total = FusedAddRmsNorm(256, dtype=torch.float32).reference(x, residual, weight)
    parts = DynamicPerTokenScaledFp8Quant(256, torch.float32).reference(y)
    fused = RmsNormDynamicPerTokenQuant(256, dtype=torch.float32, add_residual=True).reference(x, residual, weight)
    assert all(torch.equal(a, b) for a, b in zip((*parts, total), fused, strict=True))
