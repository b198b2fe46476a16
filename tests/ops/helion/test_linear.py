"""``linear``'s tile program in the interpreter, beside the reference: every algorithm, ragged N and K."""

from __future__ import annotations

import pytest
import torch

from parhelion.ops.check import check
from parhelion.ops.linear import OP, Linear
from tests.ops.helion.awkward import AWKWARD_ROWS, AWKWARD_TOKENS, generator, with_awkward_row
from tests.ops.helion.gemm_variants import VARIANTS, launcher

CPU = torch.device("cpu")

RAGGED = Linear(200, 72, bias=True)


@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
@pytest.mark.parametrize("contract", OP.examples[:3], ids=str)
def test_agrees_with_the_reference(contract: Linear, num_tokens: int):
    inputs = contract.sample_inputs(num_tokens, CPU, generator())
    for error in check(contract, OP.provider("helion").launcher(contract), inputs):
        assert error.problem is None, error


@pytest.mark.parametrize("num_tokens", [1, 13, 67])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_algorithm_agrees_with_the_reference(variant: str, num_tokens: int):
    inputs = RAGGED.sample_inputs(num_tokens, CPU, generator())
    for error in check(RAGGED, launcher(RAGGED, variant), inputs):
        assert error.problem is None, error


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_is_computed_in_float32(variant: str):
    contract = Linear(200, 72, torch.float32, bias=True)
    inputs = contract.sample_inputs(7, CPU, generator())
    y = launcher(contract, variant)(*inputs)
    oracle = contract.reference(*(x.double() for x in inputs))
    # 200 products of unit variance in float32: a few times 6e-8 of the largest.
    torch.testing.assert_close(y.double(), oracle, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["standard", "swapped", "split_3", "split_4_swapped"])
@pytest.mark.parametrize("kind", AWKWARD_ROWS)
def test_awkward_rows_come_out_as_the_reference_says_and_spoil_no_other(kind: str, variant: str):
    x, weight, bias = RAGGED.sample_inputs(19, CPU, generator())
    launch = launcher(RAGGED, variant)
    awkward = with_awkward_row(x, kind, 17)
    for error in check(RAGGED, launch, (awkward, weight, bias)):
        assert error.problem is None, error
    others = [row for row in range(19) if row != 17]
    assert torch.equal(launch(awkward, weight, bias)[others], launch(x, weight, bias)[others])


@pytest.mark.parametrize("variant", ["split_2", "split_4_swapped"])
def test_split_k_adds_its_sums_in_one_order(variant: str):
    inputs = RAGGED.sample_inputs(13, CPU, generator())
    launch = launcher(RAGGED, variant)
    assert torch.equal(launch(*inputs), launch(*inputs))


def test_no_tokens_give_an_empty_result():
    x, weight, bias = RAGGED.sample_inputs(0, CPU, generator())
    assert OP.provider("helion").launcher(RAGGED)(x, weight, bias).shape == (0, 72)
