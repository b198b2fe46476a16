"""``weight_only_mm``'s tile program in the interpreter, beside the reference: every code, every algorithm."""

from __future__ import annotations

import pytest
import torch

from parhelion.ops.check import check
from parhelion.ops.weight_only_mm import OP, WeightOnlyMm
from tests.ops.helion.awkward import AWKWARD_ROWS, AWKWARD_TOKENS, generator, with_awkward_row
from tests.ops.helion.gemm_variants import VARIANTS, launcher

CPU = torch.device("cpu")

RAGGED = WeightOnlyMm(200, 72, bias=True)


@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
@pytest.mark.parametrize("contract", OP.examples[:2], ids=str)
def test_agrees_with_the_reference(contract: WeightOnlyMm, num_tokens: int):
    inputs = contract.sample_inputs(num_tokens, CPU, generator())
    for error in check(contract, OP.provider("helion").launcher(contract), inputs):
        assert error.problem is None, error


@pytest.mark.parametrize("num_tokens", [1, 13, 67])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_algorithm_agrees_with_the_reference(variant: str, num_tokens: int):
    inputs = RAGGED.sample_inputs(num_tokens, CPU, generator())
    for error in check(RAGGED, launcher(RAGGED, variant), inputs):
        assert error.problem is None, error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_finite_code_is_widened_exactly(dtype: torch.dtype):
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    codes = codes[codes.float().isfinite()]
    assert codes.numel() == 254
    contract = WeightOnlyMm(64, 254, dtype)
    weight = torch.zeros(254, 64).to(torch.float8_e4m3fn)
    weight[:, 5] = codes
    x = torch.zeros(1, 64, dtype=dtype)
    x[0, 5] = 1
    y = launcher(contract, "swapped")(x, weight, torch.ones(254, 1))
    assert torch.equal(y[0].float(), codes.float())


@pytest.mark.parametrize("variant", ["standard", "swapped", "split_3", "split_4_swapped"])
@pytest.mark.parametrize("kind", AWKWARD_ROWS)
def test_awkward_rows_come_out_as_the_reference_says_and_spoil_no_other(kind: str, variant: str):
    x, *weights = RAGGED.sample_inputs(19, CPU, generator())
    launch = launcher(RAGGED, variant)
    awkward = with_awkward_row(x, kind, 17)
    for error in check(RAGGED, launch, (awkward, *weights)):
        assert error.problem is None, error
    others = [row for row in range(19) if row != 17]
    assert torch.equal(launch(awkward, *weights)[others], launch(x, *weights)[others])
