"""``step_inputs`` as a tile program: a program copies some blocks of one row, and the first of a row does the rest."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.programmatic import start_successor, wait_for_predecessor


@helion.kernel(static_shapes=False)
def step_inputs(
    row_slot: torch.Tensor,
    token_row: torch.Tensor,
    token_position: torch.Tensor,
    sample_position: torch.Tensor,
    tokens: torch.Tensor,
    block_table: torch.Tensor,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    row_blocks: torch.Tensor,
    sample_index: torch.Tensor,
    block_size: hl.constexpr,
    programmatic: hl.constexpr,
) -> None:
    """Inputs, then outputs, as ``StepInputs`` has them."""
    num_rows, max_blocks = row_blocks.size()
    width = tokens.size(1)
    for tile_m, tile_b in hl.tile([num_rows, max_blocks], block_size=[1, None]):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        slot = row_slot[tile_m.begin]
        row_blocks[tile_m.begin, tile_b] = block_table[slot, tile_b]
        if tile_b.begin == 0:
            position = token_position[tile_m]
            block = block_table[slot, position // block_size].to(torch.int64)
            place = block * block_size + position % block_size
            token_ids[tile_m] = tokens[slot, position].to(torch.int64)
            positions[tile_m] = position.to(torch.int64)
            slot_mapping[tile_m] = torch.where(token_row[tile_m] < 0, -1, place)
            # Both in 64 bits: a sum takes its type from the tile, whatever the scalar's.
            sample_index[tile_m] = slot.to(torch.int64) * width + sample_position[tile_m].to(torch.int64)
