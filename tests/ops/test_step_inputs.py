"""The definition of ``step_inputs`` beside plain Python, for rows of one token and for rows of several."""

from __future__ import annotations

import pytest
import torch

from parhelion.ops.step_inputs import StepInputs
from parhelion.ops.step_inputs.formulas import row_inputs, token_inputs

BLOCK_SIZE, WIDTH = 4, 22

TOKENS = torch.arange(3 * WIDTH, dtype=torch.int32).view(3, WIDTH) * 7
BLOCKS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 8, 7], [0, 0, 0, 0, 0]], dtype=torch.int32)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_each_row_of_a_decoding_step_is_looked_up_in_its_slot(order: list[int]) -> None:
    """Slot 1 at position 6, slot 0 at position 9 without sampling, and padding of the spare slot, in either order."""
    rows = torch.tensor(order)
    fields = (ints(1, 0, 2), ints(0, 1, -1), ints(6, 9, 0), ints(7, WIDTH - 1, WIDTH - 1))
    ids, positions, slot_mapping, row_blocks, sample_index = StepInputs(BLOCK_SIZE).reference(
        *(field[rows] for field in fields), TOKENS, BLOCKS
    )
    expected = [
        ([7 * (WIDTH + 6), 7 * 9, 7 * 2 * WIDTH], ids),
        ([6, 9, 0], positions),
        ([2 * BLOCK_SIZE + 2, 4 * BLOCK_SIZE + 1, -1], slot_mapping),
        ([[9, 2, 6, 8, 7], [3, 1, 4, 1, 5], [0] * 5], row_blocks),
        ([WIDTH + 7, WIDTH - 1, 3 * WIDTH - 1], sample_index),
    ]
    for want, found in expected:
        assert found.tolist() == [want[row] for row in order]
    assert [each.dtype for each in (ids, positions, slot_mapping, row_blocks, sample_index)] == [
        torch.int64, torch.int64, torch.int64, torch.int32, torch.int64
    ]  # fmt: skip


def test_tokens_of_a_row_share_its_slot_and_may_stand_behind_their_positions() -> None:
    slots, token_row, position = ints(1, 1, 0, 0), ints(0, 0, 1, -1), ints(3, 4, 8, 0)
    for ahead in (0, 1):
        ids, positions, slot_mapping = token_inputs(slots, token_row, position, TOKENS, BLOCKS, BLOCK_SIZE, ahead)
        assert ids.tolist() == [7 * (WIDTH + 3 + ahead), 7 * (WIDTH + 4 + ahead), 7 * (8 + ahead), 7 * ahead]
        assert positions.tolist() == [3, 4, 8, 0]
        assert slot_mapping.tolist() == [9 * BLOCK_SIZE + 3, 2 * BLOCK_SIZE, 4 * BLOCK_SIZE, -1]


def test_what_is_sampled_further_on_never_leaves_its_slot() -> None:
    _, index = row_inputs(ints(1, 0), ints(5, WIDTH - 1), TOKENS, BLOCKS, tokens_ahead=1)
    assert index.tolist() == [WIDTH + 6, WIDTH - 1]


def test_traffic_counts_what_must_be_moved() -> None:
    # Of 4,096 tokens 256 blocks; five integers of 32 bits read, four of 64 written.
    assert StepInputs(16).traffic(3).bytes == 3 * (5 * 4 + 4 * 8 + 2 * 4 * 256)
    assert StepInputs(16).traffic(3).flops == 0
