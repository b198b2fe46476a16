"""How a step's inputs follow from its integers and the tables of all slots, for any number of tokens a row."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Tensors


def token_inputs(
    slots: torch.Tensor,
    token_row: torch.Tensor,
    token_position: torch.Tensor,
    tokens: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
    tokens_ahead: int = 0,
) -> Tensors:
    """What belongs to each token.

    Args:
        slots: [num_tokens] int32 or int64, of each token's row.
        token_row, token_position: [num_tokens] int32; row -1 is padding.
        tokens: [num_slots, width] int32.
        block_table: [num_slots, max_blocks] int32.
        block_size: tokens of a block.
        tokens_ahead: how far behind its position each token's id stands; 0 but for heads that take the next token.

    Returns:
        Three [num_tokens] int64: ids, positions, and where keys and values go (-1 for padding).
    """
    positions, slots = token_position.long(), slots.long()
    blocks = block_table[slots, positions // block_size].long()
    slot_mapping = torch.where(token_row < 0, -1, blocks * block_size + positions % block_size)
    ids = tokens[slots, positions + tokens_ahead if tokens_ahead else positions].long()
    return ids, positions, slot_mapping


def row_inputs(
    row_slot: torch.Tensor,
    sample_position: torch.Tensor,
    tokens: torch.Tensor,
    block_table: torch.Tensor,
    tokens_ahead: int = 0,
) -> Tensors:
    """What belongs to each row.

    Args:
        row_slot, sample_position: [num_rows] int32.
        tokens: [num_slots, width] int32, of which the last column takes what nobody reads.
        block_table: [num_slots, max_blocks] int32.
        tokens_ahead: how much further than its position a sampled id goes.

    Returns:
        The rows' blocks, [num_rows, max_blocks] int32, and where in ``tokens``, laid out flat, their sampled ids go,
        [num_rows] int64.
    """
    slots, positions, width = row_slot.long(), sample_position.long(), tokens.shape[1]
    if tokens_ahead:
        positions = (positions + tokens_ahead).clamp(max=width - 1)
    return block_table[slots], slots * width + positions
