"""``rms_norm_per_block_quant``'s tile program in the interpreter, beside the reference."""

from __future__ import annotations

import pytest

from parhelion.ops.rms_norm_per_block_quant import OP, RmsNormPerBlockQuant
from tests.ops.helion.awkward import AWKWARD_ROWS, AWKWARD_TOKENS
from tests.ops.helion.row_checks import (
    assert_agrees,
    assert_awkward_row_agrees,
    assert_scales_are_powers_of_two,
    assert_updates_in_place,
)

AWKWARD = (
    RmsNormPerBlockQuant(256),
    RmsNormPerBlockQuant(256, group_size=32, scale_format="ue8m0", add_residual=True),
)


@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
@pytest.mark.parametrize("contract", OP.examples[:3], ids=str)
def test_agrees_with_the_reference(contract: RmsNormPerBlockQuant, num_tokens: int):
    assert_agrees(contract, num_tokens)


@pytest.mark.parametrize("kind", AWKWARD_ROWS)
@pytest.mark.parametrize("contract", AWKWARD, ids=str)
def test_awkward_rows_come_out_as_the_reference_says(contract: RmsNormPerBlockQuant, kind: str):
    assert_awkward_row_agrees(contract, kind)


def test_ue8m0_scales_are_powers_of_two_and_no_code_saturates():
    assert_scales_are_powers_of_two(AWKWARD[1])


def test_the_residual_is_updated_in_place_and_nothing_else():
    assert_updates_in_place(AWKWARD[-1])
