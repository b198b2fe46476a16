"""``scaled_mm_silu_and_mul``'s tile program in the interpreter, beside the reference: FP8 and INT8, every algorithm."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch

from parhelion.ops.arrival_counters import arrival_counters
from parhelion.ops.check import check
from parhelion.ops.contract import Launcher, Tensors
from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.helion_provider import interpret, tile_program
from parhelion.ops.scaled_mm_silu_and_mul import OP, ScaledMmSiluAndMul
from parhelion.ops.scaled_mm_silu_and_mul.launch import candidates, default_config, launch
from tests.ops.helion.awkward import AWKWARD_TOKENS, generator

CPU = torch.device("cpu")

FP8 = ScaledMmSiluAndMul(200, 72)
INT8 = ScaledMmSiluAndMul(200, 200, torch.int8, torch.float32)

VARIANTS = {
    "standard": GemmConfig(16, 64, 64),
    "standard_wide": GemmConfig(16, 128, 64),
    "swapped": GemmConfig(16, 64, 64, swap_ab=True),
    "swapped_wide": GemmConfig(32, 128, 64, swap_ab=True),
    "split_3": GemmConfig(16, 64, 32, split_k=3),
    "split_2_wide": GemmConfig(16, 128, 32, split_k=2),
    "split_4_swapped": GemmConfig(16, 64, 32, swap_ab=True, split_k=4),
    "split_3_swapped_wide": GemmConfig(32, 128, 64, swap_ab=True, split_k=3),
    "persistent": GemmConfig(16, 64, 64, pid_type="persistent_blocked", group_m=4),
}


def launcher(contract: ScaledMmSiluAndMul, config: GemmConfig, run: Any = interpret) -> Launcher:
    return functools.partial(launch, contract, run, config)


def assert_agrees(contract: ScaledMmSiluAndMul, launch: Launcher, inputs: Tensors) -> None:
    for error in check(contract, launch, inputs):
        assert error.problem is None, error
    assert not arrival_counters(CPU, 1).any()


@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
@pytest.mark.parametrize("contract", OP.examples[:2], ids=str)
def test_agrees_with_the_reference(contract: ScaledMmSiluAndMul, num_tokens: int):
    inputs = contract.sample_inputs(num_tokens, CPU, generator())
    assert_agrees(contract, OP.provider("helion").launcher(contract), inputs)


@pytest.mark.parametrize("num_tokens", [1, 13, 35])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("contract", [FP8, INT8], ids=["fp8", "int8"])
def test_every_algorithm_agrees_with_the_reference(contract: ScaledMmSiluAndMul, variant: str, num_tokens: int):
    inputs = contract.sample_inputs(num_tokens, CPU, generator())
    assert_agrees(contract, launcher(contract, VARIANTS[variant]), inputs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_amax_is_that_of_the_rounded_activation(variant: str):
    contract = ScaledMmSiluAndMul(96, 160)
    inputs = contract.sample_inputs(5, CPU, generator())
    activated, amax = launcher(contract, VARIANTS[variant])(*inputs)
    assert amax.shape == (3, 5)
    for entry, columns in enumerate(activated.float().split(64, 1)):
        assert torch.equal(amax[entry], columns.abs().amax(1))


def test_gate_and_up_are_not_rounded_in_between():
    """The reference in float64, rounded once, is met almost everywhere to the bit."""
    inputs = FP8.sample_inputs(13, CPU, generator())
    activated, _ = OP.provider("helion").launcher(FP8)(*inputs)
    exact, _ = FP8.reference(inputs[0], inputs[1].double(), inputs[2], inputs[3].double())
    assert exact.dtype == torch.float64
    assert (activated != exact.to(FP8.dtype)).double().mean() < 0.01


@pytest.mark.parametrize("variant", ["standard", "swapped_wide", "split_3", "split_4_swapped"])
def test_a_nan_code_stays_in_its_row(variant: str):
    inputs = FP8.sample_inputs(19, CPU, generator())
    inputs[0].view(torch.uint8)[3, 130] = 0x7F
    activated, amax = launcher(FP8, VARIANTS[variant])(*inputs)
    others = [row for row in range(19) if row != 3]
    assert activated[3].isnan().all()
    assert amax[:, 3].isnan().all()
    assert activated[others].isfinite().all()
    assert amax[:, others].isfinite().all()


@pytest.mark.parametrize("variant", ["standard", "swapped", "split_2_wide", "split_4_swapped"])
def test_what_is_read_ahead_is_part_of_the_sum(variant: str):
    contract = ScaledMmSiluAndMul(512, 96, torch.int8, torch.float32)
    config = replace(VARIANTS[variant], programmatic=True, ahead=2)
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
    activated, amax = launcher(INT8, VARIANTS["standard"])(*INT8.sample_inputs(0, CPU, generator()))
    assert activated.shape == (0, 200)
    assert amax.shape == (4, 0)


def test_a_tile_that_shares_an_entry_is_refused():
    with pytest.raises(ValueError, match="block_n = 32 is no multiple of 64"):
        launcher(FP8, GemmConfig(16, 32, 64))(*FP8.sample_inputs(1, CPU, generator()))


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "sm_120", "gfx950"])
def test_configs_have_whole_entries_and_both_sums_in_registers(name: str):
    target = gemm_target(name)
    for contract in OP.examples:
        for bucket in (1, 16, 64, 256, 8192):
            for config in candidates(contract, bucket, target):
                assert config.block_n in (64, 128)
                assert 2 * config.block_m * config.block_n <= 128 * 32 * config.num_warps
            assert default_config(contract, bucket, target).num_warps in (4, 8)


def test_traffic_counts_each_input_and_output_once():
    # Codes 3 x 64 and 2 x 32 x 64, y 3 x 32 of two bytes; 3 + 64 scales and 3 entries of four.
    traffic = ScaledMmSiluAndMul(64, 32).traffic(3)
    assert traffic.bytes == 192 + 4096 + 192 + 4 * 67 + 4 * 3
    assert traffic.flops == 2 * 3 * 64 * 64 + 7 * 3 * 32
    assert traffic.unit == "float8"


def test_aten_rounds_gate_and_up_and_stays_within_the_contract(monkeypatch: pytest.MonkeyPatch):
    def product(codes: torch.Tensor, weight: torch.Tensor, **given: Any) -> torch.Tensor:
        y: torch.Tensor = (codes.float() @ weight.float()) * given["scale_a"] * given["scale_b"]
        return y.to(given["out_dtype"])

    monkeypatch.setattr(torch, "_scaled_mm", product)
    contract = ScaledMmSiluAndMul(128, 160)
    assert_agrees(contract, OP.provider("torch").launcher(contract), contract.sample_inputs(13, CPU, generator()))
