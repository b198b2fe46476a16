"""How a CPU goes about a step's attention, worked out once and shared by all layers: blocks to gather, and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DecodeGroup:
    """Rows with one query token each; they come first in the step.

    Attributes:
        num_rows: how many.
        blocks: [num_rows * blocks_per_row] int64, the rows' block ids, padded with block 0.
        first_block: where the only row's blocks lie if they are side by side, so that nothing is gathered; else None.
        longest: tokens of the longest row.
        masks: sliding window (or None) to a float mask [num_rows, 1, 1, width] of 0 and -inf, or to None where nothing
            is to be hidden. Width is ``longest`` if first_block is set, else blocks_per_row * block_size.
    """

    num_rows: int
    blocks: torch.Tensor
    first_block: int | None
    longest: int
    masks: dict[int | None, torch.Tensor | None]


@dataclass(frozen=True)
class PrefillRow:
    """One row with several query tokens (or the first token of a prompt).

    Attributes:
        first_token, last_token: the row's slice of the step's tokens.
        seq_len: tokens in the cache, this chunk's included.
        blocks: [num_blocks] int64.
        first_block: where the blocks lie if they are side by side; else None.
        masks: sliding window to a float mask [num_tokens, seq_len], or to None for plain causal from position 0.
    """

    first_token: int
    last_token: int
    seq_len: int
    blocks: torch.Tensor
    first_block: int | None
    masks: dict[int | None, torch.Tensor | None]


@dataclass(frozen=True)
class CpuAttentionBatch:
    """Attributes:
    decodes: the rows with one token, or None.
    prefills: the others.
    """

    decodes: DecodeGroup | None
    prefills: tuple[PrefillRow, ...]


def plan_cpu_attention(
    block_table: Ints,
    starts: Sequence[int],
    num_tokens: Sequence[int],
    block_size: int,
    windows: frozenset[int | None],
    dtype: torch.dtype,
) -> CpuAttentionBatch:
    """Arrange a step's rows.

    Args:
        block_table: [num_rows, max_blocks] block ids by position.
        starts: tokens of each row in the cache before the step.
        num_tokens: new tokens of each row; rows with one token that lead the list are taken as decodes.
        block_size: tokens of a block.
        windows: the sliding windows that the model's layers use.
        dtype: of the masks; the queries' own.
    """
    num_decodes = 0
    while num_decodes < len(starts) and num_tokens[num_decodes] == 1:
        num_decodes += 1
    decodes = None
    if num_decodes:
        seq_lens = np.asarray(starts[:num_decodes], dtype=np.int64) + 1
        decodes = _decode_group(block_table[:num_decodes], seq_lens, block_size, windows, dtype)
    prefills = []
    token = num_decodes
    for row in range(num_decodes, len(starts)):
        start, count = starts[row], num_tokens[row]
        blocks = block_table[row, : -(-(start + count) // block_size)].copy()
        masks = {window: _prefill_mask(start, count, window, dtype) for window in windows}
        prefills.append(
            PrefillRow(token, token + count, start + count, torch.from_numpy(blocks), _first_if_adjacent(blocks), masks)
        )
        token += count
    return CpuAttentionBatch(decodes, tuple(prefills))


def _first_if_adjacent(blocks: Ints) -> int | None:
    return int(blocks[0]) if bool((np.diff(blocks) == 1).all()) else None


def _decode_group(
    block_table: Ints, seq_lens: Ints, block_size: int, windows: frozenset[int | None], dtype: torch.dtype
) -> DecodeGroup:
    num_rows = len(seq_lens)
    longest = int(seq_lens.max())
    blocks_per_row = -(-longest // block_size)
    blocks = block_table[:, :blocks_per_row]
    first_block = _first_if_adjacent(blocks[0]) if num_rows == 1 else None
    width = blocks_per_row * block_size
    if first_block is not None:
        masks = {window: _window_mask(longest, window, dtype) for window in windows}
        return DecodeGroup(1, torch.from_numpy(blocks[0]), first_block, longest, masks)
    used = -(-seq_lens // block_size)
    padded = np.where(np.arange(blocks_per_row) < used[:, None], blocks, 0)
    return DecodeGroup(
        num_rows=num_rows,
        blocks=torch.from_numpy(padded.reshape(-1)),
        first_block=None,
        longest=longest,
        masks={window: _decode_mask(seq_lens, width, window, dtype) for window in windows},
    )


def _window_mask(seq_len: int, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
    """The mask of a single row whose every token but those before the window is seen."""
    if window is None or window >= seq_len:
        return None
    return _additive(torch.arange(seq_len) < seq_len - window, dtype)[None, None, None]


def _decode_mask(seq_lens: Ints, width: int, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
    lens = torch.from_numpy(seq_lens)[:, None]
    positions = torch.arange(width)
    hidden = positions >= lens
    if window is not None:
        hidden |= positions < lens - window
    return _additive(hidden, dtype)[:, None, None, :] if bool(hidden.any()) else None


def _prefill_mask(start: int, count: int, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
    seq_len = start + count
    if start == 0 and (window is None or window >= seq_len):
        return None
    query = torch.arange(start, seq_len)[:, None]
    key = torch.arange(seq_len)
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    return _additive(hidden, dtype)


def _additive(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
