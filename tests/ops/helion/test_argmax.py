"""``argmax``'s tile programs in the interpreter, beside the reference."""

from __future__ import annotations

import pytest
import torch

from parhelion.ops.argmax import OP, Argmax
from parhelion.ops.check import check
from tests.ops.helion.awkward import AWKWARD_ROWS, AWKWARD_TOKENS, generator, with_awkward_row

CPU = torch.device("cpu")


def assert_agrees(contract: Argmax, logits: torch.Tensor) -> None:
    for error in check(contract, OP.provider("helion").launcher(contract), (logits,)):
        assert error.problem is None, error


@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
def test_agrees_with_the_reference(num_tokens: int):
    assert_agrees(OP.examples[0], *OP.examples[0].sample_inputs(num_tokens, CPU, generator()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_many_chunks_agrees_with_the_reference(dtype: torch.dtype):
    contract = Argmax(17003, dtype)
    assert_agrees(contract, *contract.sample_inputs(3, CPU, generator()))


@pytest.mark.parametrize("kind", AWKWARD_ROWS)
def test_awkward_rows_come_out_as_the_reference_says(kind: str):
    contract = Argmax(5000)
    (logits,) = contract.sample_inputs(3, CPU, generator())
    assert_agrees(contract, with_awkward_row(logits, kind, 1))


def test_of_equal_elements_the_first_wins_in_a_chunk_and_across_chunks():
    logits = torch.full((4, 5000), -float("inf"))
    logits[1, [17, 18, 4999]] = 1.0
    logits[2, [2047, 2048]] = 3.0
    logits[3, [100, 4000]] = float("nan")
    ids = OP.provider("helion").launcher(Argmax(5000))(logits)
    assert ids.tolist() == [0, 17, 2047, 100]
