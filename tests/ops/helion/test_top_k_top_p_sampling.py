"""``top_k_top_p_sampling``'s tile program in the interpreter, beside the reference."""

from __future__ import annotations

import pytest
import torch

from parhelion.ops.check import check
from parhelion.ops.contract import Tensors
from parhelion.ops.top_k_top_p_sampling import OP, TopKTopPSampling
from tests.ops.helion.awkward import generator

SMALL = OP.examples[0]


def rows(logits: torch.Tensor, **values: float) -> Tensors:
    """Inputs that sample every row alike, at numbers spread over [0, 1)."""
    num_tokens = len(logits)
    parameters = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | values
    temperature, top_k, top_p, min_p = (torch.full((num_tokens,), float(value)) for value in parameters.values())
    return logits, temperature, top_k.int(), top_p, min_p, (torch.arange(num_tokens) + 0.5) / num_tokens


def assert_agrees(inputs: Tensors) -> None:
    contract = TopKTopPSampling(inputs[0].shape[1])
    for error in check(contract, OP.provider("helion").launcher(contract), inputs):
        assert error.problem is None, error


@pytest.mark.parametrize("num_tokens", [1, 2, 13])
def test_agrees_with_the_reference(num_tokens: int):
    assert_agrees(SMALL.sample_inputs(num_tokens, torch.device("cpu"), generator()))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.0},
        {"temperature": 0.5},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 96},
        {"top_k": 97},
        {"top_p": 0.01},
        {"top_p": 0.6},
        {"min_p": 0.1},
        {"top_k": 10, "top_p": 0.7},
        {"top_k": 30, "top_p": 0.95, "min_p": 0.05, "temperature": 1.7},
    ],
    ids=str,
)
def test_every_filter_agrees_with_the_reference(values: dict[str, float]):
    assert_agrees(rows(torch.randn((12, 97), generator=generator()) * 2, **values))


@pytest.mark.parametrize(
    "values", [{"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}, {"top_k": 5, "top_p": 0.4}], ids=str
)
def test_equal_and_hidden_tokens_come_out_as_the_reference_says(values: dict[str, float]):
    logits = torch.randint(-2, 3, (12, 97), generator=generator()).float()
    logits[:, ::3] = float("-inf")
    logits[:, 4] = -0.0
    assert_agrees(rows(logits, **values))
