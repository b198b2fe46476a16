"""``step_inputs``: what a model is given of a step, out of the tables of all requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic
from parhelion.ops.step_inputs.formulas import row_inputs, token_inputs

MOST_SLOTS = 256
"""Of sampled tables; with more rows several are of one slot, as where guesses are rows of their own."""

MAX_MODEL_LEN = 4096
"""Tokens of a slot in sampled tables; programs do not depend on it."""


@dataclass(frozen=True)
class StepInputs(Contract):
    """The integers of a step whose rows have one token each: row i is token i, padding too.

    Inputs:
        row_slot [M] int32: the slot of each row.
        token_row [M] int32: the row of each token; -1 for padding, which may have any slot and position that exist.
        token_position [M] int32: where each token stands in its request.
        sample_position [M] int32: where the id goes that is sampled from it.
        tokens [num_slots, width] int32, contiguous: the tokens of every slot.
        block_table [num_slots, max_blocks] int32: the blocks of every slot.
    Outputs:
        token_ids [M] int64.
        positions [M] int64.
        slot_mapping [M] int64: block_id * block_size + offset, where each token's key and value go; -1 for padding.
        row_blocks [M, max_blocks] int32: the block table of each row.
        sample_index [M] int64: where in ``tokens``, laid out flat, the sampled id goes.
    """

    block_size: int

    name: ClassVar[str] = "step_inputs"
    outputs: ClassVar[tuple[Output, ...]] = tuple(
        Output(name, relative=0.0) for name in ("token_ids", "positions", "slot_mapping", "row_blocks", "sample_index")
    )

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        """Every eighth row is padding, of a slot that nobody has."""
        num_slots, width = min(num_tokens, MOST_SLOTS), MAX_MODEL_LEN + 2
        rows = torch.arange(num_tokens, dtype=torch.int32)
        is_padding = rows % 8 == 7
        positions = torch.randint(MAX_MODEL_LEN, (num_tokens,), generator=generator, dtype=torch.int32)
        inputs = (
            torch.where(is_padding, num_slots, rows % num_slots).int(),
            torch.where(is_padding, -1, rows).int(),
            torch.where(is_padding, 0, positions).int(),
            torch.where(is_padding, width - 1, positions + 1).int(),
            torch.randint(2**17, (num_slots + 1, width), generator=generator, dtype=torch.int32),
            torch.randint(2**20, (num_slots + 1, self._max_blocks), generator=generator, dtype=torch.int32),
        )
        return tuple(each.to(device) for each in inputs)

    def reference(
        self,
        row_slot: torch.Tensor,
        token_row: torch.Tensor,
        token_position: torch.Tensor,
        sample_position: torch.Tensor,
        tokens: torch.Tensor,
        block_table: torch.Tensor,
    ) -> Tensors:
        return (
            *token_inputs(row_slot, token_row, token_position, tokens, block_table, self.block_size),
            *row_inputs(row_slot, sample_position, tokens, block_table),
        )

    def traffic(self, num_tokens: int) -> Traffic:
        """Of a row: four integers and its token, four of 64 bits written, and its blocks read and written."""
        return Traffic(num_tokens * (5 * 4 + 4 * 8 + 2 * 4 * self._max_blocks), 0)

    @property
    def _max_blocks(self) -> int:
        return -(-MAX_MODEL_LEN // self.block_size)
