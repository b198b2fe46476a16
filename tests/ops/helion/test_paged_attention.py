"""``paged_attention``'s tile programs in the interpreter, beside the reference.

Blocks that no row owns, and slots behind a row's last token, hold NaN throughout: nobody may read them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from parhelion.ops.check import check
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.helion_provider import interpret
from parhelion.ops.paged_attention import OP, AttentionBatch, PagedAttention
from parhelion.ops.paged_attention.launch import launch
from parhelion.ops.paged_attention.sample import sample_rows
from parhelion.ops.paged_attention.tiling import untuned
from tests.ops.helion.awkward import generator

CPU = torch.device("cpu")

SMALL = PagedAttention(4, 2, 64, 16, 0.125, dtype=torch.float32)
"""float32: what is compared is the algorithm."""


def poisoned_rows(
    contract: PagedAttention, query_lens: list[int], seq_lens: list[int]
) -> tuple[torch.Tensor, torch.Tensor, AttentionBatch]:
    shape = (contract.num_heads, contract.num_kv_heads, contract.head_dim, contract.block_size)
    query, kv_cache, batch = sample_rows(query_lens, seq_lens, shape, contract.dtype, CPU, generator())
    owned = torch.zeros(kv_cache.shape[0] * contract.block_size, dtype=torch.bool)
    for row, seq_len in enumerate(seq_lens):
        tokens = torch.arange(seq_len)
        blocks = batch.block_table[row, tokens // contract.block_size].long()
        owned[blocks * contract.block_size + tokens % contract.block_size] = True
    kv_cache.view(-1, *kv_cache.shape[2:])[~owned] = float("nan")
    return query, kv_cache, batch


def assert_agrees(contract: PagedAttention, inputs: tuple[torch.Tensor, torch.Tensor, AttentionBatch]) -> None:
    for error in check(contract, OP.provider("helion").launcher(contract), inputs):
        assert error.problem is None, error


VARIANTS = (
    SMALL,
    replace(SMALL, num_heads=2),
    replace(SMALL, num_heads=6, dtype=torch.bfloat16),
    replace(SMALL, sliding_window=20),
    replace(SMALL, soft_cap=2.0),
    replace(SMALL, sliding_window=1, soft_cap=2.0, block_size=32),
)


@pytest.mark.parametrize("seq_lens", [[70], [1, 16, 17, 64, 33], [5, 0, 70, 0]], ids=str)
@pytest.mark.parametrize("contract", VARIANTS, ids=str)
def test_decode_rows_agree_with_the_reference(contract: PagedAttention, seq_lens: list[int]):
    assert_agrees(contract, poisoned_rows(contract, [1] * len(seq_lens), seq_lens))


@pytest.mark.parametrize(
    ("query_lens", "seq_lens"),
    [
        ([70], [70]),
        ([3], [60]),
        ([1, 1, 33, 5], [40, 7, 33, 70]),
        ([7, 1, 0, 20, 0], [7, 1, 0, 61, 0]),
        ([2, 1, 3], [50, 0, 0]),
    ],
    ids=str,
)
@pytest.mark.parametrize("contract", VARIANTS, ids=str)
def test_mixed_rows_agree_with_the_reference(contract: PagedAttention, query_lens: list[int], seq_lens: list[int]):
    assert_agrees(contract, poisoned_rows(contract, query_lens, seq_lens))


def interpret_in_tiles_of_16(kernel: Any, config: Any, *arguments: Any) -> Any:
    """The interpreter takes a loop without a block size in one go; here the loops over keys get one."""
    if kernel == "paged_attention.paged_attention_combine":
        return interpret(kernel, config, *arguments)
    return interpret(kernel, config, *arguments[:-1], 16)


@pytest.mark.parametrize(
    ("query_lens", "seq_lens"), [([1, 1, 1], [70, 5, 33]), ([1, 33, 5, 0], [40, 33, 70, 0])], ids=str
)
@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("contract", [SMALL, VARIANTS[3], VARIANTS[5]], ids=str)
def test_tiles_of_keys_add_up_to_all_keys(
    contract: PagedAttention, late: bool, query_lens: list[int], seq_lens: list[int]
):
    inputs = poisoned_rows(contract, query_lens, seq_lens)
    config = replace(untuned(contract, gemm_target("sm_90")), varlen_late=late)
    for error in check(contract, lambda *x: launch(contract, interpret_in_tiles_of_16, config, *x), inputs):
        assert error.problem is None, error


LONG, PADDED = ([150, 1, 20], [150, 70, 300]), ([9, 0, 128, 3], [200, 0, 128, 0])


@pytest.mark.parametrize(
    ("lens", "tokens", "late"),
    [(LONG, 16, False), (LONG, 64, True), (PADDED, 16, True), (PADDED, 64, False)],
    ids=["long-16-at once", "long-64-late", "padded-16-late", "padded-64-at once"],
)
@pytest.mark.parametrize(
    "contract",
    [
        replace(SMALL, dtype=torch.bfloat16),
        replace(SMALL, head_dim=96, num_heads=6, sliding_window=70, soft_cap=2.0),
        replace(SMALL, num_heads=2, block_size=24),
    ],
    ids=str,
)
def test_prompts_of_many_tiles_agree_with_the_reference(
    contract: PagedAttention, lens: tuple[list[int], list[int]], tokens: int, late: bool
):
    """Full tiles, the diagonal and, with a window, where it begins; heads and blocks of any size."""
    inputs = poisoned_rows(contract, *lens)
    config = replace(untuned(contract, gemm_target("sm_90")), varlen_tokens=tokens, varlen_late=late)
    for error in check(contract, OP.provider("helion").configured(contract, config), inputs):
        assert error.problem is None, error


@pytest.mark.parametrize("query_lens", [[2, 1, 1], [1, 1, 1]], ids=str)
def test_tokens_behind_the_last_row_come_out_as_zeros(query_lens: list[int]):
    query, kv_cache, batch = poisoned_rows(SMALL, query_lens, [20, 17, 5])
    padded = torch.cat((query, torch.full((4, query.shape[1]), 3.0)))
    out = OP.provider("helion").launcher(SMALL)(padded, kv_cache, batch)
    assert torch.equal(out[len(query) :], torch.zeros(4, query.shape[1]))
    torch.testing.assert_close(out[: len(query)], SMALL.reference(query, kv_cache, batch))


def test_a_nan_of_one_row_reaches_no_other():
    query, kv_cache, batch = poisoned_rows(SMALL, [2, 1, 3], [20, 17, 5])
    kv_cache[int(batch.block_table[1, 0]), 3] = float("nan")
    out = OP.provider("helion").launcher(SMALL)(query, kv_cache, batch)
    assert out.isnan().any(-1).tolist() == [False, False, True, False, False, False]


def test_rows_of_a_query_may_lie_apart():
    """As those of a view into the projection's output do."""
    query, kv_cache, batch = poisoned_rows(SMALL, [2, 1], [20, 17])
    apart = torch.cat((query, query), 1)[:, : query.shape[1]]
    launcher = OP.provider("helion").launcher(SMALL)
    assert torch.equal(launcher(apart, kv_cache, batch), launcher(query, kv_cache, batch))
