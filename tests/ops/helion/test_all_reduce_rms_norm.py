"""``all_reduce_rms_norm``'s tile program in the interpreter, for a rank alone and for two that share a process."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from parhelion.ops.all_reduce_rms_norm import OP, AllReduceRmsNorm
from parhelion.ops.all_reduce_rms_norm import launch as launching
from parhelion.ops.all_reduce_rms_norm.launch import candidates, default_config, launch
from parhelion.ops.contract import Tensors
from parhelion.ops.exchange import high_of, low_of, packed
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.helion_provider import interpret
from parhelion.ops.inboxes import MOST_ROWS, PLACES, Inboxes, forget_inboxes, inboxes
from parhelion.ops.quantize import FP8
from tests.ops.helion.awkward import AWKWARD_ROWS, AWKWARD_TOKENS
from tests.ops.helion.row_checks import assert_agrees, assert_awkward_row_agrees, assert_updates_in_place

CPU = torch.device("cpu")
TARGET = gemm_target("sm_90")


@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
@pytest.mark.parametrize("contract", OP.examples[:3], ids=str)
def test_alone_it_agrees_with_the_reference(contract: AllReduceRmsNorm, num_tokens: int):
    assert_agrees(contract, num_tokens)


@pytest.mark.parametrize("kind", AWKWARD_ROWS)
def test_awkward_rows_come_out_as_the_reference_says(kind: str):
    assert_awkward_row_agrees(AllReduceRmsNorm(64, 1), kind)


def test_the_residual_is_updated_in_place_and_nothing_else():
    assert_updates_in_place(AllReduceRmsNorm(64, 1))


def test_words_hold_two_elements_and_a_turn():
    for dtype in (torch.bfloat16, torch.float16):
        low, high = (torch.randn(9, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
        for turn in (1, -1, 2**31 - 1, -(2**31)):
            words = packed(low, high, torch.tensor(turn, dtype=torch.int32))
            assert torch.equal(low_of(words, dtype), low.float())
            assert torch.equal(high_of(words, dtype), high.float())
            assert ((words >> 32).to(torch.int32) == turn).all()


@pytest.mark.parametrize("contract", [AllReduceRmsNorm(96, 2), AllReduceRmsNorm(64, 2, quant_dtype=FP8)], ids=str)
def test_two_ranks_tell_each_other_their_rows_and_agree(contract: AllReduceRmsNorm, monkeypatch: pytest.MonkeyPatch):
    """One after the other: what the second would have sent is put into the first one's inbox beforehand."""
    half, rows = contract.hidden_size // 2, 3
    shared = tuple(torch.zeros(PLACES * 2 * MOST_ROWS * half, dtype=torch.int64) for _ in range(2))
    ranks = [Inboxes.of(shared, rank, half) for rank in range(2)]
    generator = torch.Generator().manual_seed(3)
    residual, weight = contract.sample_inputs(rows, CPU, generator)[1:]
    expected_residual = residual.clone()
    residuals = [residual.clone(), residual.clone()]
    config = default_config(contract, 4, TARGET)
    assert config.one_shot
    for turn in (1, 2, 3):
        parts = [contract.sample_inputs(rows, CPU, generator)[0] for _ in range(2)]
        place = shared[0].view(PLACES, 2, MOST_ROWS, half)[turn % 2, 1, :rows]
        place.copy_(packed(parts[1][:, :half], parts[1][:, half:], torch.tensor(turn, dtype=torch.int32)))
        found: list[Tensors] = []
        for rank, part in enumerate(parts):
            monkeypatch.setattr(launching, "inboxes", lambda *_, rank=rank: ranks[rank])
            found.append(launch(contract, interpret, config, part, residuals[rank], weight))
        for one, other in zip(*found, strict=True):
            assert torch.equal(one.float(), other.float())
        total = (parts[0].float() + parts[1].float() + expected_residual.float()).to(contract.dtype)
        alone = replace(contract, num_ranks=1)
        expected = alone.reference(torch.zeros_like(total), total, weight)
        for one, wanted in zip(found[0], expected, strict=True):
            torch.testing.assert_close(one.float(), wanted.float(), rtol=1e-2, atol=1e-2)
        assert torch.equal(residuals[0], total)
        expected_residual = total
        assert all((each.turns[:rows] == turn).all() and not each.turns[rows:].any() for each in ranks)


def test_many_rows_and_wide_elements_are_not_exchanged_in_a_program():
    forget_inboxes()
    assert not default_config(AllReduceRmsNorm(64, 1), 2 * MOST_ROWS, TARGET).one_shot
    assert not default_config(AllReduceRmsNorm(64, 1, dtype=torch.float32), 1, TARGET).one_shot
    launched: list[str] = []
    contract = AllReduceRmsNorm(64, 1)
    inputs = contract.sample_inputs(MOST_ROWS + 1, CPU, torch.Generator())
    launch(contract, lambda kernel, *_: launched.append(kernel), default_config(contract, 1, TARGET), *inputs)
    assert launched == ["fused_add_rms_norm.fused_add_rms_norm"]


def test_both_ways_are_worth_trying_where_rows_are_few():
    found = candidates(AllReduceRmsNorm(4096, 2), 16, TARGET)
    assert {each.one_shot for each in found} == {True, False}
    assert [each.one_shot for each in candidates(AllReduceRmsNorm(4096, 2), 4096, TARGET)] == [False]


def test_more_ranks_than_reach_each_other_have_no_inboxes():
    assert inboxes(CPU, 9, 32) == "9 ranks do not reach each other's memory, 8 at most do"
