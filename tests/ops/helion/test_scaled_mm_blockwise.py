"""``scaled_mm_blockwise``'s tile program in the interpreter, beside the reference: every algorithm, ragged blocks."""

from __future__ import annotations

import functools

import pytest
import torch

from parhelion.ops.check import check, compare
from parhelion.ops.contract import as_tuple
from parhelion.ops.gemm import launch as gemm_launch
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.scaled_mm_blockwise import OP, ScaledMmBlockwise
from tests.ops.helion.awkward import AWKWARD_TOKENS, generator
from tests.ops.helion.gemm_variants import VARIANTS, launcher

CPU = torch.device("cpu")

RAGGED = ScaledMmBlockwise(320, 144, bias=True)


@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
@pytest.mark.parametrize("contract", OP.examples[:2], ids=str)
def test_agrees_with_the_reference(contract: ScaledMmBlockwise, num_tokens: int):
    inputs = contract.sample_inputs(num_tokens, CPU, generator())
    for error in check(contract, OP.provider("helion").launcher(contract), inputs):
        assert error.problem is None, error


@pytest.mark.parametrize("num_tokens", [1, 13, 67])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_algorithm_agrees_with_the_reference(variant: str, num_tokens: int):
    inputs = RAGGED.sample_inputs(num_tokens, CPU, generator())
    for error in check(RAGGED, launcher(RAGGED, variant), inputs):
        assert error.problem is None, error


def test_each_block_has_its_own_scale():
    contract = ScaledMmBlockwise(256, 256, torch.float32)
    codes = torch.ones(3, 256).to(torch.float8_e4m3fn)
    weight = torch.ones(256, 256).to(torch.float8_e4m3fn)
    scales = torch.tensor([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]])
    weight_scales = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    y = launcher(contract, "split_2")(codes, scales, weight, weight_scales)
    assert torch.equal(y[:, :128], (128 * (scales @ weight_scales[0])).view(3, 1).expand(3, 128))
    assert torch.equal(y[:, 128:], (128 * (scales @ weight_scales[1])).view(3, 1).expand(3, 128))


@pytest.mark.parametrize("variant", ["standard", "swapped", "split_3", "split_4_swapped"])
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e30, float("nan")])
def test_a_strange_scale_stays_in_its_row(scale: float, variant: str):
    inputs = RAGGED.sample_inputs(19, CPU, generator())
    inputs[1][17, 1] = scale
    y = launcher(RAGGED, variant)(*inputs)
    for error in compare(RAGGED, (y,), as_tuple(RAGGED.reference(*inputs))):
        assert error.problem is None, error
    others = [row for row in range(19) if row != 17]
    assert torch.equal(y[others], plain(variant)[others])


@functools.cache
def plain(variant: str) -> torch.Tensor:
    """What comes out where no scale is strange."""
    return as_tuple(launcher(RAGGED, variant)(*RAGGED.sample_inputs(19, CPU, generator())))[0]


@pytest.mark.parametrize("name", ["sm_80", "gfx942"])
def test_fp8_is_served_where_there_is_none(name: str, monkeypatch):
    monkeypatch.setattr(gemm_launch, "target_of_device", lambda device: gemm_target(name))
    inputs = RAGGED.sample_inputs(13, CPU, generator())
    for error in check(RAGGED, OP.provider("helion").launcher(RAGGED), inputs):
        assert error.problem is None, error
