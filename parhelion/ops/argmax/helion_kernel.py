"""``argmax`` as two tile programs: the largest of each chunk of a row, then the largest of those."""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.programmatic import start_successor, wait_for_predecessor

FEW_ROWS = 16
"""Up to here rows are cut into smaller chunks, so that more programs share one."""


@helion.kernel(static_shapes=False)
def argmax_chunks(
    logits: torch.Tensor, values: torch.Tensor, ids: torch.Tensor, chunk: hl.constexpr, programmatic: hl.constexpr
) -> None:
    """logits [M, vocab_size]; values float32 and ids int32, both [M, chunks]: each chunk's largest, and where it is."""
    num_tokens, vocab_size = logits.size()
    vocab_size = hl.specialize(vocab_size)
    for tile_m, tile_v in hl.tile([num_tokens, vocab_size], block_size=[1, chunk]):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        x = logits[tile_m, tile_v].to(torch.float32)
        largest = torch.amax(x, -1)
        # The maximum is NaN where there is one, and then equal to nothing.
        is_largest = (x == largest[:, None]) | (x != x)
        values[tile_m, tile_v.id] = largest
        ids[tile_m, tile_v.id] = torch.amin(torch.where(is_largest, tile_v.index[None, :], 2147483647), -1)


@helion.kernel(static_shapes=False)
def argmax_combine(
    values: torch.Tensor, ids: torch.Tensor, out: torch.Tensor, num_chunks: hl.constexpr, programmatic: hl.constexpr
) -> None:
    """values, ids [M, num_chunks]; out [M] int64. ``num_chunks`` is an argument so that programs for different numbers
    of chunks are told apart by their arguments.
    """
    num_tokens = values.size(0)
    hl.specialize(values.size(1))
    for tile_m in hl.tile(num_tokens, block_size=1):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        x = values[tile_m, :]
        largest = torch.amax(x, -1)
        is_largest = (x == largest[:, None]) | (x != x)
        out[tile_m] = torch.amin(torch.where(is_largest, ids[tile_m, :], 2147483647), -1).to(torch.int64)
