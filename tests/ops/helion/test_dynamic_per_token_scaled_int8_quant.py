"""``dynamic_per_token_scaled_int8_quant``'s tile program in the interpreter, beside the reference."""

from __future__ import annotations

import pytest

from parhelion.ops.dynamic_per_token_scaled_int8_quant import OP, DynamicPerTokenScaledInt8Quant
from tests.ops.helion.awkward import AWKWARD_ROWS, AWKWARD_TOKENS
from tests.ops.helion.row_checks import assert_agrees, assert_awkward_row_agrees

AWKWARD = (DynamicPerTokenScaledInt8Quant(64),)


@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
@pytest.mark.parametrize("contract", OP.examples[:3], ids=str)
def test_agrees_with_the_reference(contract: DynamicPerTokenScaledInt8Quant, num_tokens: int):
    assert_agrees(contract, num_tokens)


@pytest.mark.parametrize("kind", AWKWARD_ROWS)
@pytest.mark.parametrize("contract", AWKWARD, ids=str)
def test_awkward_rows_come_out_as_the_reference_says(contract: DynamicPerTokenScaledInt8Quant, kind: str):
    assert_awkward_row_agrees(contract, kind)
