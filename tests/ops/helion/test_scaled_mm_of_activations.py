"""``scaled_mm_of_activations``'s tile program in the interpreter, beside the reference and the ops that it replaces."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch

from parhelion.ops.arrival_counters import arrival_counters
from parhelion.ops.check import check
from parhelion.ops.contract import Launcher, Tensors, as_tuple
from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.helion_provider import interpret, tile_program
from parhelion.ops.quantize import per_token_quantized
from parhelion.ops.registry import op
from parhelion.ops.scaled_mm import ScaledMm
from parhelion.ops.scaled_mm_of_activations import OP, ScaledMmOfActivations
from parhelion.ops.scaled_mm_of_activations.launch import launch
from parhelion.ops.scaled_mm_silu_and_mul import ScaledMmSiluAndMul
from parhelion.ops.scaled_mm_silu_and_mul.contract import column_amax
from parhelion.ops.silu_and_mul_dynamic_per_token_quant import SiluAndMulDynamicPerTokenQuant
from tests.ops.helion.awkward import AWKWARD_ROWS, AWKWARD_TOKENS, generator, with_awkward_row

CPU = torch.device("cpu")

FP8 = ScaledMmOfActivations(200, 72)
INT8 = ScaledMmOfActivations(200, 200, torch.int8, torch.float32)

VARIANTS = {
    "standard": GemmConfig(16, 64, 64),
    "standard_wide": GemmConfig(16, 128, 64),
    "swapped": GemmConfig(16, 64, 64, swap_ab=True),
    "swapped_wide": GemmConfig(32, 128, 64, swap_ab=True),
    "split_3": GemmConfig(16, 64, 32, split_k=3),
    "split_4_swapped": GemmConfig(16, 32, 32, swap_ab=True, split_k=4),
    "split_3_swapped_wide": GemmConfig(32, 128, 64, swap_ab=True, split_k=3),
    "persistent": GemmConfig(16, 64, 64, pid_type="persistent_blocked", group_m=4),
}


def launcher(contract: ScaledMmOfActivations, config: GemmConfig, run: Any = interpret) -> Launcher:
    return functools.partial(launch, contract, run, config)


def assert_agrees(contract: ScaledMmOfActivations, launch: Launcher, inputs: Tensors) -> None:
    for error in check(contract, launch, inputs):
        assert error.problem is None, error
    assert not arrival_counters(CPU, 1).any()


@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
@pytest.mark.parametrize("contract", OP.examples[:2], ids=str)
def test_agrees_with_the_reference(contract: ScaledMmOfActivations, num_tokens: int):
    inputs = contract.sample_inputs(num_tokens, CPU, generator())
    assert_agrees(contract, OP.provider("helion").launcher(contract), inputs)


@pytest.mark.parametrize("num_tokens", [1, 13, 35])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("contract", [FP8, INT8], ids=["fp8", "int8"])
def test_every_algorithm_agrees_with_the_reference(contract: ScaledMmOfActivations, variant: str, num_tokens: int):
    inputs = contract.sample_inputs(num_tokens, CPU, generator())
    assert_agrees(contract, launcher(contract, VARIANTS[variant]), inputs)


@pytest.mark.parametrize("quant_dtype", [torch.float8_e4m3fn, torch.int8], ids=["fp8", "int8"])
def test_the_reference_is_quantization_and_then_the_product(quant_dtype: torch.dtype):
    contract = ScaledMmOfActivations(200, 72, quant_dtype)
    x, amax, weight, weight_scales = contract.sample_inputs(13, CPU, generator())
    codes, scales = per_token_quantized(x.float(), quant_dtype)
    y = ScaledMm(200, 72, quant_dtype).reference(codes, scales, weight, weight_scales)
    assert torch.equal(contract.reference(x, amax, weight, weight_scales), y)


@pytest.mark.parametrize("variant", ["standard", "swapped", "split_3", "split_4_swapped"])
@pytest.mark.parametrize("kind", AWKWARD_ROWS)
def test_an_awkward_row_stays_alone(kind: str, variant: str):
    x, _, *weights = FP8.sample_inputs(19, CPU, generator())
    x = with_awkward_row(x, kind, 17)
    inputs = (x, column_amax(x), *weights)
    y = as_tuple(launcher(FP8, VARIANTS[variant])(*inputs))[0]
    others = [row for row in range(19) if row != 17]
    assert torch.equal(y[others], plain(variant)[others])
    if kind in ("nan", "inf"):
        assert not y[17].isfinite().any()
    else:
        assert_agrees(FP8, lambda *same: y, inputs)


@functools.cache
def plain(variant: str) -> torch.Tensor:
    """What comes out where no row is awkward."""
    x, _, *weights = FP8.sample_inputs(19, CPU, generator())
    return as_tuple(launcher(FP8, VARIANTS[variant])(x, column_amax(x), *weights))[0]


@pytest.mark.parametrize("num_tokens", [1, 5])
@pytest.mark.parametrize("swap_ab", [False, True])
def test_more_entries_than_are_read_at_once_all_count(swap_ab: bool, num_tokens: int):
    # A warp has room for four entries of so many tokens.
    config = GemmConfig(256, 64, 64, swap_ab, num_warps=1)
    contract = ScaledMmOfActivations(1300, 40, torch.int8, torch.float32)
    inputs = contract.sample_inputs(num_tokens, CPU, generator())
    for entry in (0, 7, 20):
        inputs[1][entry, 0] = 10.0
        assert_agrees(contract, launcher(contract, config), inputs)
        inputs[1][entry, 0] = 3.0


@pytest.mark.parametrize("variant", ["standard", "swapped", "split_3", "split_4_swapped"])
def test_what_is_read_ahead_is_part_of_the_sum(variant: str):
    config = replace(VARIANTS[variant], programmatic=True, ahead=2)
    contract = ScaledMmOfActivations(128 * config.split_k, 96, torch.int8, torch.float32)
    heads: list[int] = []

    def interpret_alone(kernel: str, config: Any, *arguments: Any) -> None:
        """The interpreter knows no launches, so none is programmatic."""
        program = tile_program(kernel)
        given = dict(zip(inspect.signature(program.fn).parameters, arguments, strict=True))
        heads.append(given["head"])
        program(*(given | {"programmatic": False}).values())

    inputs = contract.sample_inputs(5, CPU, generator())
    assert_agrees(contract, launcher(contract, config, interpret_alone), inputs)
    assert heads == [2 * config.block_k]


def test_no_token_is_no_launch():
    y = launcher(INT8, VARIANTS["standard"])(*INT8.sample_inputs(0, CPU, generator()))
    assert y.shape == (0, 200)


@pytest.mark.parametrize("num_tokens", [1, 13])
@pytest.mark.parametrize(
    ("dtype", "bound"),
    # In float32 both compute the same but for a code in a thousand. Rounded to bfloat16, the activation moves about one
    # code in twenty by a step, which is about 0.09 of an FP8 code: 0.09 * sqrt(0.05).
    [(torch.float32, 3e-3), (torch.bfloat16, 2e-2)],
    ids=str,
)
@pytest.mark.parametrize("quant_dtype", [torch.float8_e4m3fn, torch.int8], ids=["fp8", "int8"])
def test_two_launches_agree_with_the_three_that_they_replace(
    quant_dtype: torch.dtype, dtype: torch.dtype, bound: float, num_tokens: int
):
    size, columns = 160, 192
    first = ScaledMmSiluAndMul(size, columns, quant_dtype, dtype)
    second = ScaledMmOfActivations(columns, size, quant_dtype, dtype)
    codes, scales, gate_up, gate_up_scales = first.sample_inputs(num_tokens, CPU, generator())
    *_, down, down_scales = second.sample_inputs(num_tokens, CPU, generator(1))

    def helion(contract: Any) -> Launcher:
        return op(contract.name).provider("helion").launcher(contract)

    activated, amax = helion(first)(codes, scales, gate_up, gate_up_scales)
    y = helion(second)(activated, amax, down, down_scales)

    both = helion(ScaledMm(size, 2 * columns, quant_dtype, dtype))(codes, scales, gate_up, gate_up_scales)
    quantized = helion(SiluAndMulDynamicPerTokenQuant(columns, dtype, quant_dtype))(both)
    want = helion(ScaledMm(columns, size, quant_dtype, dtype))(*quantized, down, down_scales)
    assert torch.linalg.vector_norm((y - want).double()) <= bound * torch.linalg.vector_norm(want.double())


def test_traffic_counts_each_input_and_output_once():
    # x 3 x 160 and y 3 x 32 of two bytes, the weight 32 x 160; 3 x 3 entries and 32 scales of four.
    traffic = ScaledMmOfActivations(160, 32).traffic(3)
    assert traffic.bytes == 2 * 480 + 5120 + 2 * 96 + 4 * (9 + 32)
    assert traffic.flops == 2 * 3 * 160 * 32
    assert traffic.unit == "float8"


def test_aten_stays_within_the_contract(monkeypatch: pytest.MonkeyPatch):
    def product(codes: torch.Tensor, weight: torch.Tensor, **given: Any) -> torch.Tensor:
        y: torch.Tensor = (codes.float() @ weight.float()) * given["scale_a"] * given["scale_b"]
        return y.to(given["out_dtype"])

    monkeypatch.setattr(torch, "_scaled_mm", product)
    contract = ScaledMmOfActivations(160, 96)
    assert_agrees(contract, OP.provider("torch").launcher(contract), contract.sample_inputs(13, CPU, generator()))
