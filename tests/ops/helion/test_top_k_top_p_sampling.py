"""``top_k_top_p_sampling``'s tile programs in the interpreter, beside the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from parhelion.ops.arrival_counters import arrival_counters
from parhelion.ops.check import check
from parhelion.ops.contract import Tensors
from parhelion.ops.top_k_top_p_sampling import OP, TopKTopPSampling
from parhelion.ops.top_k_top_p_sampling.launch import SamplingConfig
from tests.ops.helion.awkward import generator

SMALL = OP.examples[0]

FEW = SamplingConfig(units=8, parts=2, most=32, gathered=16)
"""Rows that keep more than 16 tokens are searched, by two programs of a thousand tokens' row."""


def rows(logits: torch.Tensor, **values: float) -> Tensors:
    """Inputs that sample every row alike, at numbers spread over [0, 1)."""
    num_tokens = len(logits)
    parameters = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | values
    temperature, top_k, top_p, min_p = (torch.full((num_tokens,), float(value)) for value in parameters.values())
    return logits, temperature, top_k.int(), top_p, min_p, (torch.arange(num_tokens) + 0.5) / num_tokens


def assert_agrees(inputs: Tensors, config: SamplingConfig | None = None) -> None:
    contract = TopKTopPSampling(inputs[0].shape[1])
    for error in check(contract, OP.provider("helion").configured(contract, config), inputs):
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


@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"min_p": 0.01},
        {"top_p": 0.9},
        {"top_k": 300},
        {"top_k": 300, "top_p": 0.8, "min_p": 0.05, "temperature": 1.7},
    ],
    ids=str,
)
def test_rows_that_keep_many_tokens_agree_with_the_reference(values: dict[str, float], rounds: int):
    assert_agrees(rows(torch.randn((3, 1000), generator=generator()), **values), replace(FEW, rounds=rounds))


@pytest.mark.parametrize("values", [{"top_k": 20}, {"top_p": 0.7}, {"top_k": 400, "top_p": 0.7}], ids=str)
def test_many_equal_tokens_are_kept_or_dropped_together(values: dict[str, float]):
    logits = torch.randn((3, 1000), generator=generator()).round()
    logits[:, ::3] = float("-inf")
    assert_agrees(rows(logits, **values), FEW)
    assert_agrees(rows(torch.ones((3, 1000)), **values), FEW)


def test_values_that_differ_in_their_last_bit_are_told_apart():
    """Passes over equally spaced pivots cannot: what they leave is searched to the bit."""
    logits = 1.0 + torch.arange(1000.0).repeat(2, 1) * 2.0**-23
    logits[:, :5] = 9.0
    assert_agrees(rows(logits, top_k=500), replace(FEW, rounds=1))
    assert_agrees(rows(logits, top_k=500, top_p=0.999), replace(FEW, rounds=1))


def test_a_launch_leaves_the_arrival_counters_at_zero():
    assert_agrees(rows(torch.randn((3, 1000), generator=generator()), top_p=0.9), FEW)
    assert not arrival_counters(torch.device("cpu"), 1).any()
