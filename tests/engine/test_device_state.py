"""What the tables on a device give a step, and where its ids go, beside plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from parhelion.engine.device.state import DeviceState
from parhelion.engine.step_layout import Bucket, StepInts, StepRows, guesses_apart, pack, view_ints
from parhelion.layers.step_batch import StepBatch
from parhelion.ops.contract import Contract
from parhelion.ops.resolve import Resolver
from parhelion.ops.step_inputs import StepInputs

CPU = torch.device("cpu")

NUM_SLOTS, MAX_LEN, BLOCK_SIZE = 4, 30, 4

DECODING = StepRows(*np.array([[2, 0, 3], [9, 4, 11], [1, 1, 1], [1, 0, 1], [0, 0, 0]]))
"""Slots, starts, tokens, samples, output indices: three rows of one token, of which the second does not sample."""

GUESSING = guesses_apart(StepRows(*np.array([[2, 0], [9, 4], [3, 1], [3, 1], [0, 0]])))
"""Two guesses of slot 2, in rows of their own."""

MIXED = StepRows(*np.array([[2, 0, 3], [9, 4, 0], [1, 3, 2], [1, 1, 0], [0, 0, 0]]))

STEPS = [
    (DECODING, Bucket.decoding(4)),
    (DECODING, Bucket.decoding(3)),
    (GUESSING, Bucket.verifying(8, 4)),
    (MIXED, Bucket(4, 8)),
    (DECODING, Bucket(4, 8)),
]


class Watched(Resolver):
    """Counts the launches of the contract that it is asked for."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.contracts: list[Contract] = []
        self.num_launches = 0

    def launcher(self, contract: Contract) -> Any:
        self.contracts.append(contract)
        launch = super().launcher(contract)

        def counted(*inputs: Any) -> Any:
            self.num_launches += 1
            return launch(*inputs)

        return counted


def state_of(resolver: Resolver | None = None) -> DeviceState:
    """With a number of its own in every place that requests use; the spare slot holds zeros."""
    state = DeviceState(NUM_SLOTS, MAX_LEN, BLOCK_SIZE, CPU, resolver or Resolver(CPU))
    state.tokens[:-1] = torch.arange(state.tokens[:-1].numel()).view(NUM_SLOTS, -1)
    state.block_table[:-1] = 1 + torch.arange(state.block_table[:-1].numel()).view(NUM_SLOTS, -1)
    return state


def ints_of(state: DeviceState, rows: StepRows, bucket: Bucket) -> StepInts:
    """At an odd place of a buffer."""
    buffer = np.zeros(200, np.int32)
    pack(rows, bucket, buffer[1:], state.spare_slot, state.spare_position)
    return view_ints(torch.from_numpy(buffer)[1:], bucket)


def assert_batch(state: DeviceState, batch: StepBatch, rows: StepRows, ahead: int = 0) -> None:
    """Token by token and row by row; of padding that it goes nowhere."""
    token = 0
    for slot, start, count in zip(rows.slots.tolist(), rows.starts.tolist(), rows.counts.tolist(), strict=True):
        for position in range(start, start + count):
            block = int(state.block_table[slot, position // BLOCK_SIZE])
            assert int(batch.token_ids[token]) == int(state.tokens[slot, position + ahead])
            assert int(batch.positions[token]) == position
            assert int(batch.slot_mapping[token]) == block * BLOCK_SIZE + position % BLOCK_SIZE
            token += 1
    assert (batch.slot_mapping[token:] == -1).all()
    of_rows = batch.attention.block_table
    assert torch.equal(of_rows[: len(rows.slots)], state.block_table[torch.from_numpy(rows.slots)])
    assert (of_rows[len(rows.slots) :] == 0).all()
    assert [each.dtype for each in (batch.token_ids, batch.positions, batch.slot_mapping)] == [torch.int64] * 3
    assert of_rows.dtype == torch.int32


@pytest.mark.parametrize(("rows", "bucket"), STEPS, ids=str)
@pytest.mark.parametrize("ahead", [0, 1])
def test_a_step_is_given_what_its_slots_hold(rows: StepRows, bucket: Bucket, ahead: int) -> None:
    state = state_of()
    batch = state.tensors(ints_of(state, rows, bucket), bucket, ahead).batch
    assert_batch(state, batch, rows, ahead)
    assert batch.attention.max_query_len == bucket.max_query_len
    assert batch.attention.max_seq_len == MAX_LEN


@pytest.mark.parametrize(("rows", "bucket"), STEPS, ids=str)
@pytest.mark.parametrize("ahead", [0, 1])
def test_ids_are_written_behind_the_rows_that_sample_and_nowhere_else(
    rows: StepRows, bucket: Bucket, ahead: int
) -> None:
    state = state_of()
    expected = state.tokens.clone()
    # Ids of all 32 bits that an id may have, in a tensor whose elements are apart.
    ids = torch.stack((torch.arange(bucket.num_rows) + 2**31 - 100, torch.full((bucket.num_rows,), -1)), dim=-1)[:, 0]
    state.store(state.tensors(ints_of(state, rows, bucket), bucket, ahead).sample_index, ids)
    for row in np.flatnonzero(rows.samples):
        expected[rows.slots[row], rows.starts[row] + rows.counts[row] + ahead] = int(ids[row])
    # The spare column of any slot takes what nobody reads.
    assert torch.equal(state.tokens[:-1, :-1], expected[:-1, :-1])


@pytest.mark.parametrize(("rows", "bucket"), STEPS, ids=str)
def test_steps_of_single_tokens_are_one_launch(rows: StepRows, bucket: Bucket) -> None:
    resolver = Watched()
    state = state_of(resolver)
    assert resolver.contracts == [StepInputs(BLOCK_SIZE)]
    state.tensors(ints_of(state, rows, bucket), bucket)
    assert resolver.num_launches == int(bucket.decodes)
