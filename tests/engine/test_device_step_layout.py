"""Guesses as rows of their own: the same tokens, the same samples, and attention that sees the same."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch

from parhelion.engine.device.buckets import Buckets
from parhelion.engine.device.state import DeviceState, merged
from parhelion.engine.step_layout import (
    Bucket,
    StepRows,
    guesses_apart,
    num_ints,
    pack,
    rows_apart,
    rows_of,
    samples_of,
    tokens_apart,
    view_ints,
)
from parhelion.ops.contract import Contract
from parhelion.ops.fused_rope_attention import FusedRopeAttention
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.launching import bucket_of, launch_module
from parhelion.ops.paged_attention import PagedAttention
from parhelion.ops.paged_attention.batch import MOST_DECODES, AttentionBatch
from parhelion.ops.resolve import Resolver
from parhelion.scheduler import Row, StepPlan

CPU = torch.device("cpu")

ROWS = (
    Row("a", 3, 9, 3, True, 2, (11, 12)),
    Row("b", 0, 5, 1, True, 1),
    Row("c", 4, 20, 2, True, 7, (13,)),
    Row("d", 1, 0, 4, False, 0),
    Row("e", 2, 8, 3, True, 0),
)
PLAN = StepPlan(0, ROWS, (), ())


def test_a_guess_becomes_a_row_behind_the_one_that_it_was_guessed_for():
    apart = guesses_apart(rows_of(PLAN))
    assert apart.slots.tolist() == [3, 3, 3, 0, 4, 4, 1, 2]
    assert apart.starts.tolist() == [9, 10, 11, 5, 20, 21, 0, 8]
    assert apart.counts.tolist() == [1, 1, 1, 1, 1, 1, 4, 3]
    assert apart.samples.tolist() == [1, 1, 1, 1, 1, 1, 0, 1]
    assert apart.output_indices.tolist() == [2, 3, 4, 1, 7, 8, 0, 0]


def test_rows_of_a_plan_are_taken_apart_at_once():
    late = (Row("c", 4, 20, 2, True, 7, (13,), unchecked=3), Row("b", 0, 5, 1, True, 1))
    for plan in (PLAN, StepPlan(0, late, (), ()), StepPlan(0, ROWS[3:], (), ())):
        expected, got = guesses_apart(rows_of(plan)), rows_apart(plan)
        assert (got.unchecked is None) == (expected.unchecked is None) == (plan.rows is not late)
        fields = ["slots", "starts", "counts", "samples", "output_indices"]
        for field in [*fields, "unchecked"] if plan.rows is late else fields:
            assert getattr(got, field).tolist() == getattr(expected, field).tolist(), field


def test_rows_at_bounds_stay_so_when_they_are_taken_apart():
    assert rows_of(PLAN).unchecked is None
    late = (Row("c", 4, 20, 2, True, 7, (13,), unchecked=3), Row("b", 0, 5, 1, True, 1))
    rows = rows_of(StepPlan(0, late, (), ()))
    assert rows.unchecked is not None
    assert rows.unchecked.tolist() == [3, 0]
    for apart in (guesses_apart(rows), tokens_apart(rows)):
        assert apart.unchecked is not None
        assert apart.unchecked.tolist() == [3, 3, 0]
        assert apart.slots.tolist() == [4, 4, 0]


@pytest.mark.parametrize("at_bounds", ["none", "checks", "all"])
def test_which_steps_may_be_at_bounds(at_bounds: Literal["none", "checks", "all"]):
    """Those that only decode have nothing to put right unless a draft model runs them behind others."""
    buckets = Buckets(4, 32, 2, at_bounds)
    assert {bucket.at_bounds for bucket in buckets.decoding()} == {at_bounds == "all"}
    _, mixed, verifying = buckets.smallest()
    assert verifying.verifies
    assert {each.at_bounds for each in (mixed, verifying, buckets.largest)} == {at_bounds != "none"}
    assert num_ints(buckets.largest) == max(map(num_ints, (buckets.largest, *buckets.one_token_a_row())))


@pytest.mark.parametrize("at_bounds", ["none", "checks"])
def test_only_steps_that_bring_guesses_have_room_for_entries(at_bounds: Literal["none", "checks"]):
    """What is planned ahead gets no launch more for it."""
    buckets = Buckets(4, 32, 2, at_bounds, brings_guesses=True)
    assert [bucket.entries for bucket in buckets.verifying()] == [2 * bucket.num_rows for bucket in buckets.verifying()]
    assert {bucket.entries for bucket in (*buckets.decoding(), buckets.smallest()[1])} == {0}
    assert num_ints(buckets.largest) == max(map(num_ints, (buckets.largest, *buckets.one_token_a_row())))
    assert {bucket.entries for bucket in Buckets(4, 32, 2, at_bounds).verifying()} == {0}


def test_samples_are_the_same_with_guesses_apart():
    together, apart = samples_of(rows_of(PLAN)), samples_of(guesses_apart(rows_of(PLAN)))
    for field in ("slots", "tokens", "positions", "output_indices"):
        assert getattr(apart, field).tolist() == getattr(together, field).tolist(), field
    assert apart.rows.tolist() == [0, 1, 2, 3, 4, 5, 7]


def test_rows_without_guesses_stay_as_they_are():
    rows = rows_of(StepPlan(0, (ROWS[1], *ROWS[3:]), (), ()))
    apart = guesses_apart(rows)
    for field in ("slots", "starts", "counts", "samples", "output_indices"):
        assert getattr(apart, field).tolist() == getattr(rows, field).tolist(), field


def test_tokens_become_rows_of_which_the_last_of_a_row_samples():
    rows = rows_of(StepPlan(0, ROWS[1:2] + ROWS[3:], (), ()))
    apart = tokens_apart(rows)
    assert apart.slots.tolist() == [0, 1, 1, 1, 1, 2, 2, 2]
    assert apart.starts.tolist() == [5, 0, 1, 2, 3, 8, 9, 10]
    assert apart.counts.tolist() == [1] * 8
    assert apart.samples.tolist() == [1, 0, 0, 0, 0, 0, 0, 1]
    together, alone = samples_of(rows), samples_of(apart)
    for field in ("slots", "tokens", "positions", "output_indices"):
        assert getattr(alone, field).tolist() == getattr(together, field).tolist(), field


@pytest.mark.parametrize(("counts", "apart"), [((1, 1), False), ((1, 2), True), ((3, 3), True), ((1, 4), False)])
def test_a_draft_models_pass_has_a_row_a_token_if_no_row_has_more_than_are_checked_at_once(
    counts: tuple[int, ...], apart: bool
):
    buckets = Buckets(max_num_seqs=4, max_num_batched_tokens=32, num_guesses=2)
    zeros = np.zeros(len(counts), np.int64)
    rows = StepRows(np.arange(len(counts)), zeros, np.array(counts), zeros, zeros)
    assert buckets.takes_apart(rows) == apart
    assert not Buckets(4, 32, num_guesses=0).takes_apart(rows)
    if apart:
        assert buckets.of(tokens_apart(rows), True) in buckets.verifying()


def test_guesses_are_written_behind_the_known_tokens():
    state = DeviceState(5, 30, 4, CPU, Resolver(CPU))
    update = merged([state.guess_update(ROWS)])
    state.tokens.view(-1)[torch.tensor(update.offsets)] = torch.tensor(update.values, dtype=torch.int32)
    assert state.tokens.nonzero().tolist() == [[3, 10], [3, 11], [4, 21]]
    assert state.tokens[state.tokens != 0].tolist() == [11, 12, 13]


def test_a_verifying_step_is_packed_as_a_decoding_one():
    rows = guesses_apart(rows_of(StepPlan(0, ROWS[:3], (), ())))
    buffers = np.full((2, 100), 77, np.int32)
    buckets = Bucket.verifying(8, 4), Bucket.decoding(8)
    for bucket, buffer in zip(buckets, buffers, strict=True):
        pack(rows, bucket, buffer, spare_slot=5, spare_position=50)
    assert (buffers[0] == buffers[1]).all()
    ints = view_ints(torch.from_numpy(buffers[0]), buckets[0])
    assert ints.seq_lens.tolist() == [10, 11, 12, 6, 21, 22, 0, 0]
    assert ints.sample_position.tolist() == [10, 11, 12, 6, 21, 22, 50, 50]
    assert [bucket.max_query_len for bucket in buckets] == [8, 1]
    assert [bucket.siblings for bucket in buckets] == [4, 1]


@pytest.mark.parametrize(("num_guesses", "siblings"), [(1, 2), (2, 4), (3, 4), (4, 8), (7, 8), (8, 16)])
def test_a_row_and_all_its_guesses_are_siblings(num_guesses: int, siblings: int):
    buckets = Buckets(4, 64, num_guesses)
    assert {bucket.siblings for bucket in buckets.verifying()} == {siblings}
    counts = np.full(2, 1 + num_guesses)
    zeros = np.zeros(2, np.int64)
    apart = guesses_apart(StepRows(np.arange(2), zeros, counts, counts, zeros))
    assert buckets.of(apart, True).siblings == siblings


FUSED = FusedRopeAttention(4, 2, 64, 16, 128, 0.125, 1e-6, dtype=torch.float32)


@pytest.mark.parametrize("window", [None, 3])
def test_attention_sees_the_same_with_guesses_apart(window: int | None):
    contract = PagedAttention(4, 2, 16, block_size=4, scale=0.25, sliding_window=window, dtype=torch.float32)
    rows = rows_of(PLAN)
    generator = torch.Generator().manual_seed(5)
    query = torch.randn((int(rows.counts.sum()), 4 * 16), generator=generator)
    kv_cache = torch.randn((60, 4, 4, 16), generator=generator)
    block_table = torch.randperm(60, generator=generator).int().view(6, 10)

    def batch(rows: StepRows) -> AttentionBatch:
        starts = np.concatenate(([0], np.cumsum(rows.counts)))
        return AttentionBatch(
            block_table[torch.from_numpy(rows.slots)],
            torch.from_numpy(rows.starts + rows.counts).int(),
            torch.from_numpy(starts).int(),
            len(query),
            40,
        )

    together, apart = (contract.reference(query, kv_cache, batch(each)) for each in (rows, guesses_apart(rows)))
    # The same sums, of other shapes.
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("siblings", [2, 8, 16])
@pytest.mark.parametrize("num_tokens", [2, 5, 8, 40, 320])
@pytest.mark.parametrize("contract", [FUSED, FUSED.attention], ids=lambda contract: contract.name)
def test_a_verifying_step_launches_what_packs_are_built_with_and_writes_before_it_reads(
    contract: Contract, num_tokens: int, siblings: int
):
    """A program that writes its own row's token and attends in one launch would not see what other rows write."""
    module: Any = launch_module(contract.name)
    bucket = bucket_of(num_tokens)
    config = module.default_config(contract, bucket, gemm_target("sm_90"))

    def launched(inputs: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """The programs, with all that tells one from another."""
        found: list[tuple[Any, ...]] = []

        def run(kernel: str, config: Any, *arguments: Any) -> None:
            kinds = ((each.dtype, each.ndim) if isinstance(each, torch.Tensor) else each for each in arguments)
            found.append((kernel, config, *kinds))

        module.launch(contract, run, config, *inputs)
        return found

    built = {program for inputs in module.build_inputs(contract, bucket) for program in launched(inputs)}
    inputs = contract.sample_inputs(num_tokens, torch.device("cpu"), torch.Generator().manual_seed(1))
    programs = launched(tuple(_verifying(value, num_tokens, siblings) for value in inputs))
    assert set(programs) <= built
    names = [program[0] for program in programs]
    assert "fused_rope_attention.rope_attention_decode" not in names
    assert names[:1] == ["fused_qk_norm_rope.fused_qk_norm_rope"] or contract is not FUSED
    has_siblings = siblings <= 8 and 8 < num_tokens <= MOST_DECODES
    kernel = "paged_attention_siblings" if has_siblings else "paged_attention_decode"
    assert f"paged_attention.{kernel}" in names


def _verifying(value: Any, num_tokens: int, siblings: int) -> Any:
    """An input of a step; the rows are those of a verifying bucket."""
    if not isinstance(value, AttentionBatch):
        return value
    return AttentionBatch(
        torch.zeros((num_tokens, 5), dtype=torch.int32),
        torch.zeros(num_tokens, dtype=torch.int32),
        torch.arange(num_tokens + 1, dtype=torch.int32),
        Bucket.verifying(num_tokens, siblings).max_query_len,
        value.max_seq_len,
        siblings,
        torch.zeros(num_tokens, dtype=torch.int32),
    )
