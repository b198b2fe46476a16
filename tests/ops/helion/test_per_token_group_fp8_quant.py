"""``per_token_group_fp8_quant``'s tile program in the interpreter, beside the reference."""

from __future__ import annotations

import pytest

from parhelion.ops.per_token_group_fp8_quant import OP, PerTokenGroupFp8Quant
from tests.ops.helion.awkward import AWKWARD_ROWS, AWKWARD_TOKENS
from tests.ops.helion.row_checks import assert_agrees, assert_awkward_row_agrees, assert_scales_are_powers_of_two

AWKWARD = (
    PerTokenGroupFp8Quant(256),
    PerTokenGroupFp8Quant(256, group_size=32, scale_format="ue8m0"),
)


@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
@pytest.mark.parametrize("contract", OP.examples[:3], ids=str)
def test_agrees_with_the_reference(contract: PerTokenGroupFp8Quant, num_tokens: int):
    assert_agrees(contract, num_tokens)


@pytest.mark.parametrize("kind", AWKWARD_ROWS)
@pytest.mark.parametrize("contract", AWKWARD, ids=str)
def test_awkward_rows_come_out_as_the_reference_says(contract: PerTokenGroupFp8Quant, kind: str):
    assert_awkward_row_agrees(contract, kind)


def test_ue8m0_scales_are_powers_of_two_and_no_code_saturates():
    assert_scales_are_powers_of_two(AWKWARD[1])
