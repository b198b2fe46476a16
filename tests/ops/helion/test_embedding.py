"""``embedding``'s tile program in the interpreter, beside the reference."""

from __future__ import annotations

import pytest
import torch

from parhelion.ops.check import check
from parhelion.ops.embedding import OP, Embedding
from tests.ops.helion.awkward import AWKWARD_TOKENS, generator


@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
@pytest.mark.parametrize("contract", OP.examples[:2], ids=str)
def test_agrees_with_the_reference(contract: Embedding, num_tokens: int):
    inputs = contract.sample_inputs(num_tokens, torch.device("cpu"), generator())
    for error in check(contract, OP.provider("helion").launcher(contract), inputs):
        assert error.problem is None, error


def test_a_row_of_nan_reaches_only_its_own_tokens():
    contract = OP.examples[0]
    token_ids, weight = contract.sample_inputs(5, torch.device("cpu"), generator())
    weight[token_ids[2]] = float("nan")
    hidden = OP.provider("helion").launcher(contract)(token_ids, weight)
    assert torch.equal(hidden.isnan().any(-1), token_ids == token_ids[2])
