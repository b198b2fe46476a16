"""``rms_norm_dynamic_per_token_quant``'s tile program in the interpreter, beside the reference."""

from __future__ import annotations

import pytest
import torch

from parhelion.ops.rms_norm_dynamic_per_token_quant import OP, RmsNormDynamicPerTokenQuant
from tests.ops.helion.awkward import AWKWARD_ROWS, AWKWARD_TOKENS
from tests.ops.helion.row_checks import assert_agrees, assert_awkward_row_agrees, assert_updates_in_place

AWKWARD = (
    RmsNormDynamicPerTokenQuant(64),
    RmsNormDynamicPerTokenQuant(64, quant_dtype=torch.int8, add_residual=True),
)


@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
@pytest.mark.parametrize("contract", OP.examples[:3], ids=str)
def test_agrees_with_the_reference(contract: RmsNormDynamicPerTokenQuant, num_tokens: int):
    assert_agrees(contract, num_tokens)


@pytest.mark.parametrize("kind", AWKWARD_ROWS)
@pytest.mark.parametrize("contract", AWKWARD, ids=str)
def test_awkward_rows_come_out_as_the_reference_says(contract: RmsNormDynamicPerTokenQuant, kind: str):
    assert_awkward_row_agrees(contract, kind)


def test_the_residual_is_updated_in_place_and_nothing_else():
    assert_updates_in_place(AWKWARD[-1])
