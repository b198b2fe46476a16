"""``argmax``'s tile programs in the interpreter, beside the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parhelion.ops.argmax import OP, Argmax
from parhelion.ops.argmax.launch import FEW_ROWS, default_config, launch
from parhelion.ops.check import check
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.launching import bucket_of
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


def test_launches_that_differ_in_their_chunks_differ_in_their_arguments():
    """A runner tells compiled programs apart by config and arguments other than sizes."""
    seen: dict[int, set[tuple[object, ...]]] = {}
    for num_tokens in (FEW_ROWS, FEW_ROWS + 1):

        def run(kernel: Any, config: Any, *arguments: Any, num_tokens: int = num_tokens) -> None:
            others = tuple(argument for argument in arguments if not isinstance(argument, torch.Tensor))
            seen.setdefault(num_tokens, set()).add((kernel, config, *others))

        config = default_config(Argmax(151936), bucket_of(num_tokens), gemm_target("sm_90"))
        launch(Argmax(151936), run, config, torch.empty((num_tokens, 151936)))
    assert not seen[FEW_ROWS] & seen[FEW_ROWS + 1]
