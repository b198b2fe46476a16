"""``rms_norm``'s tile program in the interpreter, beside the reference."""

from __future__ import annotations

import pytest
import torch

from parhelion.ops.check import check
from parhelion.ops.rms_norm import OP, RmsNorm
from tests.ops.helion.awkward import AWKWARD_ROWS, AWKWARD_TOKENS, generator, with_awkward_row

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
@pytest.mark.parametrize("contract", OP.examples[:3], ids=str)
def test_agrees_with_the_reference(contract: RmsNorm, num_tokens: int):
    inputs = contract.sample_inputs(num_tokens, CPU, generator())
    for error in check(contract, OP.provider("helion").launcher(contract), inputs):
        assert error.problem is None, error


@pytest.mark.parametrize("kind", AWKWARD_ROWS)
def test_awkward_rows_come_out_as_the_reference_says(kind: str):
    contract = RmsNorm(64)
    x, weight = contract.sample_inputs(3, CPU, generator())
    for error in check(contract, OP.provider("helion").launcher(contract), (with_awkward_row(x, kind, 1), weight)):
        assert error.problem is None, error
