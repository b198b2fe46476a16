"""The tile programs of ``rope_and_cache`` and ``fused_qk_norm_rope`` in the interpreter, beside their references."""

from __future__ import annotations

import pytest
import torch

from parhelion.ops.check import check
from parhelion.ops.contract import Contract, Tensors
from parhelion.ops.fused_qk_norm_rope import OP as NORM_ROPE
from parhelion.ops.registry import op
from parhelion.ops.rope_and_cache import OP as ROPE
from tests.ops.helion.awkward import AWKWARD_ROWS, generator, with_awkward_row

CPU = torch.device("cpu")
CONTRACTS = (*ROPE.examples[:3], *NORM_ROPE.examples[:3])


def inputs_of(contract: Contract, num_tokens: int) -> Tensors:
    return contract.sample_inputs(num_tokens, CPU, generator())


def assert_agrees(contract: Contract, inputs: Tensors) -> None:
    for error in check(contract, op(contract.name).provider("helion").launcher(contract), inputs):
        assert error.problem is None, error


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 13])
@pytest.mark.parametrize("contract", CONTRACTS, ids=str)
def test_agrees_with_the_reference(contract: Contract, num_tokens: int):
    assert_agrees(contract, inputs_of(contract, num_tokens))


@pytest.mark.parametrize("contract", [ROPE.examples[0], NORM_ROPE.examples[0]], ids=str)
def test_padding_tokens_write_nothing(contract: Contract):
    inputs = list(inputs_of(contract, 6))
    inputs[2][[0, 3, 5]] = -1
    assert_agrees(contract, tuple(inputs))
    inputs[2][:] = -1
    before = inputs[3].clone()
    op(contract.name).provider("helion").launcher(contract)(*inputs)
    assert torch.equal(inputs[3], before)


@pytest.mark.parametrize("kind", AWKWARD_ROWS)
@pytest.mark.parametrize("contract", [ROPE.examples[0], NORM_ROPE.examples[0]], ids=str)
def test_awkward_rows_come_out_as_the_reference_says(contract: Contract, kind: str):
    qkv, *rest = inputs_of(contract, 3)
    assert_agrees(contract, (with_awkward_row(qkv, kind, 1), *rest))


def test_heads_may_be_no_multiple_of_a_power_of_two():
    """96 elements a head: halves of 48."""
    for contract in (type(ROPE.examples[0])(3, 1, 96, 16, 64), type(NORM_ROPE.examples[0])(3, 1, 96, 1e-6, 16, 64)):
        assert_agrees(contract, inputs_of(contract, 3))
