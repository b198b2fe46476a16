"""``paged_attention`` on a CPU against the reference in float64, over every shape of step that the engine makes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from parhelion.ops.contract import Launcher
from parhelion.ops.paged_attention import OP, AttentionBatch, PagedAttention
from parhelion.ops.paged_attention.cpu_batch import CALL, SHORT, CpuAttentionBatch, plan_cpu_attention

TOLERANCE = 5e-6
"""Sums of a few hundred products of unit numbers, each rounded to float32 (6e-8); outputs are at most a few units."""

GARBAGE = 3e4
"""In every place of the cache that no row may read."""


@dataclass(frozen=True)
class Step:
    """Attributes:
    starts, counts: of each row, tokens before the step and in it.
    side_by_side: each row's blocks follow each other in the storage; else they are shuffled.
    """

    starts: tuple[int, ...]
    counts: tuple[int, ...]
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 16
    block_size: int = 16
    window: int | None = None
    side_by_side: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def contract(self) -> PagedAttention:
        heads = (self.num_heads, self.num_kv_heads, self.head_dim)
        return PagedAttention(*heads, self.block_size, self.head_dim**-0.5, self.window, dtype=self.dtype)


def block_table(step: Step, num_blocks: int, rng: np.random.Generator) -> np.ndarray:
    """[num_rows, max_blocks + 1] distinct ids; places that no row uses hold an id out of range, so none may be read."""
    needed = [-(-(start + count) // step.block_size) for start, count in zip(step.starts, step.counts, strict=True)]
    ids = np.arange(1, num_blocks) if step.side_by_side else rng.permutation(np.arange(1, num_blocks))
    table = np.full((len(needed), max(needed) + 1), 10**9, np.int64)
    for row, count in enumerate(needed):
        table[row, :count], ids = ids[:count], ids[count:]
    return table


def batch_of(step: Step, table: np.ndarray) -> AttentionBatch:
    """The rows as the engine's worker describes them."""
    lens = [start + count for start, count in zip(step.starts, step.counts, strict=True)]
    windows = frozenset((None, step.window))
    return AttentionBatch(
        block_table=torch.from_numpy(table).int(),
        seq_lens=torch.tensor(lens, dtype=torch.int32),
        query_start_loc=torch.tensor([0, *np.cumsum(step.counts)], dtype=torch.int32),
        max_query_len=max(step.counts),
        max_seq_len=max(lens),
        cpu=plan_cpu_attention(table, step.starts, step.counts, step.block_size, windows, step.dtype),
    )


def launcher(contract: PagedAttention) -> Launcher:
    return OP.provider("torch").launcher(contract)


def run(step: Step, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """What the provider computes, and what the reference does in float64, on a cache that holds the step's tokens."""
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    lens = [start + count for start, count in zip(step.starts, step.counts, strict=True)]
    num_blocks = 3 + sum(-(-length // step.block_size) for length in lens)
    table = block_table(step, num_blocks, rng)
    slots = [
        int(table[row, position // step.block_size]) * step.block_size + position % step.block_size
        for row, length in enumerate(lens)
        for position in range(length)
    ]
    shape = (num_blocks * step.block_size, 2 * step.num_kv_heads, step.head_dim)
    cache = (torch.randint(0, 2, shape, generator=generator) * 2 - 1) * GARBAGE
    cache[slots] = torch.randn(len(slots), *shape[1:], generator=generator)
    cache = cache.to(step.dtype).view(num_blocks, step.block_size, *shape[1:])
    width = step.num_heads * step.head_dim
    query = torch.randn(sum(step.counts), width, generator=generator).to(step.dtype)
    before = query.clone(), cache.clone()
    batch = batch_of(step, table)
    out = launcher(step.contract)(query, cache, batch)
    assert torch.equal(query, before[0]), "it only reads the queries"
    assert torch.equal(cache, before[1]), "it only reads the cache"
    return out, step.contract.reference(query.double(), cache.double(), batch)


def check(step: Step, seed: int = 0) -> None:
    out, oracle = run(step, seed)
    assert out.shape == oracle.shape
    assert out.dtype == step.dtype
    assert oracle.dtype == torch.float64
    error = (out.double() - oracle).abs().max().item()
    assert error < TOLERANCE, f"{step} with seed {seed} is off by {error:g}"


DECODES = Step(starts=(0, 5, 31, 32, 70), counts=(1, 1, 1, 1, 1))
PREFILLS = Step(starts=(0, 0, 0), counts=(2, 33, 16))
CHUNKS = Step(starts=(16, 7, 40), counts=(20, 9, 24))
MIXED = Step(starts=(12, 0, 47, 0, 30, 9), counts=(1, 1, 1, 35, 18, 1))
GUESSES = Step(starts=(12, 40, 0, 31, 9, 50), counts=(4, 4, 4, 4, 4, 4))
SOME_GUESSES = Step(starts=(12, 40, 0, 31, 9, 50, 20), counts=(1, 6, 1, 2, 9, 1, SHORT))
GUESSES_AND_CHUNKS = Step(starts=(12, 40, 0, 31, 9, 50, 3), counts=(3, 1, SHORT + 1, 2, 33, 1, 7))
STEPS = {
    "decode": DECODES,
    "prefill": PREFILLS,
    "chunked prefill": CHUNKS,
    "mixed": MIXED,
    "guesses": GUESSES,
    "some with guesses": SOME_GUESSES,
    "guesses and chunks": GUESSES_AND_CHUNKS,
}


@pytest.mark.parametrize("block_size", [1, 8, 16])
@pytest.mark.parametrize("name", STEPS)
def test_every_kind_of_step_agrees_with_the_reference(name: str, block_size: int) -> None:
    check(replace(STEPS[name], block_size=block_size))
    check(replace(STEPS[name], block_size=block_size, side_by_side=True))


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (1, 1), (8, 1), (9, 3)])
@pytest.mark.parametrize("name", STEPS)
def test_query_heads_share_key_heads_in_order(name: str, num_heads: int, num_kv_heads: int) -> None:
    check(replace(STEPS[name], num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=32))


@pytest.mark.parametrize("window", [1, 6, 24, 1000])
@pytest.mark.parametrize("name", STEPS)
def test_a_query_sees_its_window_and_nothing_else(name: str, window: int) -> None:
    check(replace(STEPS[name], window=window, block_size=8))
    check(replace(STEPS[name], window=window, num_kv_heads=6))


@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("window", [None, 10])
@pytest.mark.parametrize("start", [0, 15, 16, 37])
def test_one_decode_row_agrees_wherever_its_blocks_lie(start: int, window: int | None, side_by_side: bool) -> None:
    check(Step((start,), (1,), window=window, side_by_side=side_by_side))


@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("window", [None, 3, 10])
@pytest.mark.parametrize("start", [0, 13, 16, 37])
@pytest.mark.parametrize("count", [2, 5, SHORT, SHORT + 1])
def test_one_row_of_several_tokens_agrees_wherever_its_blocks_lie(
    count: int, start: int, window: int | None, side_by_side: bool
) -> None:
    check(Step((start,), (count,), window=window, side_by_side=side_by_side))


@pytest.mark.parametrize("window", [None, 100])
def test_rows_of_very_different_lengths_agree(window: int | None) -> None:
    check(Step(starts=(5, 2 * CALL, 7, 40), counts=(1, 1, 1, 1), window=window))
    check(Step(starts=(5, 2 * CALL, 7, 40), counts=(3, 1, 2, 5), window=window))
    check(Step(starts=(2 * CALL, 5, 2 * CALL - 9, 40), counts=(6, 1, 2, 4), window=window))


def plan_of(*rows: tuple[int, int]) -> CpuAttentionBatch:
    """Of rows (start, count), with blocks of 16 tokens."""
    starts, counts = zip(*rows, strict=True)
    step = Step(starts, counts)
    plan = batch_of(step, block_table(step, 2000, np.random.default_rng(0))).cpu
    assert isinstance(plan, CpuAttentionBatch)
    return plan


def sizes(plan: CpuAttentionBatch) -> list[int]:
    """Rows of each group."""
    return [group.num_rows for group in plan.groups]


def test_rows_with_guesses_share_a_call_and_leave_those_without_in_theirs() -> None:
    plan = plan_of((30, 1), (44, 6), (20, 1), (51, 2), (33, SHORT), (12, 1))
    assert sizes(plan) == [3, 3]
    assert not plan.prefills


def test_steps_of_one_token_a_row_are_computed_in_their_own_order() -> None:
    plan = plan_of((30, 1), (44, 1), (20, 1))
    assert sizes(plan) == [3]
    assert plan.order is None
    assert plan.groups[0].tokens == slice(0, 3)


def test_many_tokens_of_a_row_are_computed_by_themselves() -> None:
    plan = plan_of((30, 1), (0, SHORT + 1), (8, 40))
    assert sizes(plan) == [1]
    assert [(row.first_token, row.last_token) for row in plan.prefills] == [(1, SHORT + 2), (SHORT + 2, SHORT + 42)]


def test_a_long_row_pads_others_only_if_that_costs_less_than_a_call() -> None:
    assert sizes(plan_of((300, 1), (20, 1), (30, 1))) == [3]
    assert sizes(plan_of((20, 1), (CALL + 100, 1), (30, 1), (25, 1))) == [1, 3]
    assert sizes(plan_of((20, 3), (5 * CALL, 2), (2 * CALL, 4), (30, 1), (25, 2))) == [1, 1, 1, 2]


def test_the_only_row_of_a_single_token_is_the_decode_group() -> None:
    decodes = plan_of((30, 1)).decodes
    assert decodes is not None
    assert decodes.num_rows == 1
    assert decodes.longest == 31
    assert plan_of((0, 40)).decodes is None


def test_a_row_of_one_token_behind_prefills_is_computed_like_any_other() -> None:
    check(Step(starts=(0, 5), counts=(7, 1)))
    check(Step(starts=(0, 0), counts=(SHORT + 7, 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_with_guesses_computes_the_same_in_company_as_alone(dtype: torch.dtype) -> None:
    step = Step((40, 12, 25), (3, 5, 1), side_by_side=True, dtype=dtype)
    cache = torch.randn(20, 16, 4, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    query = torch.randn(9, 96, generator=torch.Generator().manual_seed(1)).to(dtype)
    table = block_table(step, 20, np.random.default_rng(0))
    together = launcher(step.contract)(query, cache, batch_of(step, table))
    first = 0
    for row, (start, count) in enumerate(zip(step.starts, step.counts, strict=True)):
        alone = replace(step, starts=(start,), counts=(count,))
        own = slice(first, first + count)
        out = launcher(step.contract)(query[own], cache, batch_of(alone, table[row : row + 1]))
        # Padding changes the shapes of the products, and so the order of their sums.
        torch.testing.assert_close(together[own], out, rtol=0, atol=TOLERANCE if dtype == torch.float32 else 0.03)
        first += count


@pytest.mark.parametrize("seed", range(25))
def test_random_steps_agree_with_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_decodes, num_chunks = (int(n) for n in rng.integers(0, 5, 2))
    starts = [int(n) for n in rng.integers(0, 60, num_decodes + num_chunks + 1)]
    counts = [int(n) for n in rng.choice([1, 1, 2, 5, 6], num_decodes)]
    counts += [int(n) for n in rng.integers(2, 40, num_chunks + 1)]
    num_kv_heads = int(rng.integers(1, 4))
    step = Step(
        starts=tuple(start if rng.random() < 0.7 else 0 for start in starts),
        counts=tuple(counts),
        num_heads=num_kv_heads * int(rng.integers(1, 4)),
        num_kv_heads=num_kv_heads,
        block_size=int(rng.choice([1, 4, 8, 16])),
        window=None if rng.random() < 0.5 else int(rng.integers(1, 80)),
        side_by_side=bool(rng.random() < 0.3),
    )
    check(step, seed)


def test_scratch_memory_of_a_long_step_does_not_leak_into_a_short_one() -> None:
    cache = torch.randn(40, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    table = np.random.default_rng(0).permutation(40).reshape(4, 10).astype(np.int64)
    long = Step((39, 30, 20, 10), (1,) * 4, num_heads=2, num_kv_heads=2, head_dim=8, block_size=4)
    short = replace(long, starts=(5, 2), counts=(1, 1))
    attend = launcher(long.contract)
    attend(torch.ones(4, 16), cache, batch_of(long, table))
    after_long = attend(torch.ones(2, 16), cache, batch_of(short, table[2:]))
    assert torch.equal(after_long, launcher(short.contract)(torch.ones(2, 16), cache, batch_of(short, table[2:])))


@pytest.mark.parametrize("name", STEPS)
def test_bfloat16_is_as_near_to_the_reference_as_its_eight_bits_allow(name: str) -> None:
    out, oracle = run(replace(STEPS[name], dtype=torch.bfloat16))
    # Rounding of the scores' weights and of the result, 2^-9 of values up to about 3.
    assert (out.double() - oracle).abs().max().item() < 0.03


def test_a_soft_cap_is_refused_in_words() -> None:
    refused = OP.provider("torch").refuses(replace(DECODES.contract, soft_cap=30.0))
    assert refused == "torch's fused attention has no soft cap"
