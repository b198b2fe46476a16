"""How a CPU goes about a step's attention, worked out once and shared by all layers: blocks to gather, and masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

Ints = npt.NDArray[np.int64]

SHORT = 16
"""Query tokens up to which rows share a call, the heads that share a key head as one matrix; above, the work is in the
arithmetic, a call more is nothing beside it, and torch's own sharing of key heads is as quick."""

CALL = 1024
"""What a call is worth in cached tokens of padding: rows that would need more of it in all get a call of their own. By
measurement it is 500 to 900 tokens with 3 key heads of 64, and fewer the wider a token is."""


@dataclass(frozen=True)
class DecodeGroup:
    """Rows with few query tokens each, padded to the same number of them and to the same number of cached tokens.

    Attributes:
        num_rows: how many.
        tokens: which of the step's tokens, row after row, the same number of each: a slice, or [num_rows * queries]
            int64, where a row that has fewer repeats its last one.
        blocks: [num_rows * blocks_per_row] int64, the rows' block ids, padded with block 0.
        first_block: where the only row's blocks lie if they are side by side, so that nothing is gathered; else None.
        longest: tokens of the longest row.
        masks: sliding window (or None) to a float mask [num_rows, 1, queries, width] of 0 and -inf, or to None where
            nothing is to be hidden. Width is ``longest`` if first_block is set, else blocks_per_row * block_size.
    """

    num_rows: int
    tokens: slice | torch.Tensor
    blocks: torch.Tensor
    first_block: int | None
    longest: int
    masks: dict[int | None, torch.Tensor | None]
    _repeated: dict[tuple[int | None, int], torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def mask(self, window: int | None, heads: int) -> torch.Tensor | None:
        """The mask of queries of which each stands there once for every head that shares a key head.

        Returns:
            [num_rows, 1, queries * heads, width], the heads of a query side by side; of a single query
            [num_rows, 1, 1, width], which is for all heads; or None.
        """
        mask = self.masks[window]
        if mask is None or mask.shape[2] == 1:
            return mask
        if (window, heads) not in self._repeated:
            self._repeated[window, heads] = mask.repeat_interleave(heads, 2)
        return self._repeated[window, heads]


@dataclass(frozen=True)
class PrefillRow:
    """One row with many query tokens.

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
    groups: of the rows with few tokens; of those with a single token first.
    prefills: the others.
    order: [num_tokens] int64, where each of the step's tokens stands among those of all groups, padding included, and
        then of all prefills; None where that is the step's own order.
    """

    groups: tuple[DecodeGroup, ...]
    prefills: tuple[PrefillRow, ...]
    order: torch.Tensor | None

    @property
    def decodes(self) -> DecodeGroup | None:
        """The first group: in a step of a single token, its row."""
        return self.groups[0] if self.groups else None


@dataclass(frozen=True)
class _Rows:
    """A step's rows, each an array over them; ``first_tokens`` are their places among the step's tokens."""

    block_table: Ints
    starts: Ints
    counts: Ints
    first_tokens: Ints

    @property
    def seq_lens(self) -> Ints:
        return self.starts + self.counts

    def take(self, rows: Ints) -> _Rows:
        return _Rows(self.block_table[rows], self.starts[rows], self.counts[rows], self.first_tokens[rows])


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
        num_tokens: new tokens of each row; rows with up to ``SHORT`` of them are computed together, those with a single
            token apart from those with several.
        block_size: tokens of a block.
        windows: the sliding windows that the model's layers use.
        dtype: of the masks; the queries' own.
    """
    counts = np.asarray(num_tokens, np.int64)
    rows = _Rows(block_table, np.asarray(starts, np.int64), counts, np.cumsum(counts) - counts)
    groups, places = [], []
    for few in (counts == 1, (counts > 1) & (counts <= SHORT)):
        for members in _of_like_length(np.flatnonzero(few), rows.seq_lens):
            group, tokens = _decode_group(rows.take(members), block_size, windows, dtype)
            groups.append(group)
            places.append(tokens)
    long = [_prefill_row(rows.take(row), block_size, windows, dtype) for row in np.flatnonzero(counts > SHORT)[:, None]]
    places += [np.arange(row.first_token, row.last_token) for row in long]
    return CpuAttentionBatch(tuple(groups), tuple(long), _order(np.concatenate(places), int(counts.sum())))


def _of_like_length(rows: Ints, seq_lens: Ints) -> Iterator[Ints]:
    """Rows in sets that are worth a call each: where they are cut, padding saved outweighs the call."""
    if len(rows) > 1:
        lens = seq_lens[rows]
        descending = np.sort(lens)[::-1]
        saved = (descending[0] - descending) * np.arange(len(lens), 0, -1)
        cut = int(saved.argmax())
        if saved[cut] > CALL:
            for part in (lens > descending[cut], lens <= descending[cut]):
                yield from _of_like_length(rows[part], seq_lens)
            return
    if len(rows):
        yield rows


def _decode_group(
    rows: _Rows, block_size: int, windows: frozenset[int | None], dtype: torch.dtype
) -> tuple[DecodeGroup, Ints]:
    """A group of all these rows, and the tokens that its places hold; -1 for padding."""
    num_rows = len(rows.starts)
    steps = np.arange(rows.counts.max())
    padded = np.minimum(steps, rows.counts[:, None] - 1)
    tokens = rows.first_tokens[:, None] + padded
    seq_lens = rows.seq_lens
    longest = int(seq_lens.max())
    blocks_per_row = -(-longest // block_size)
    blocks = rows.block_table[:, :blocks_per_row]
    first_block = _first_if_adjacent(blocks[0]) if num_rows == 1 else None
    if num_rows > 1:
        used = -(-seq_lens // block_size)
        blocks = np.where(np.arange(blocks_per_row) < used[:, None], blocks, 0)
    width = longest if first_block is not None else blocks_per_row * block_size
    positions = rows.starts[:, None] + padded
    group = DecodeGroup(
        num_rows=num_rows,
        tokens=_as_slice(tokens.reshape(-1)),
        blocks=torch.from_numpy(blocks.reshape(-1)),
        first_block=first_block,
        longest=longest,
        masks={window: _mask(positions, width, window, dtype) for window in windows},
    )
    return group, np.where(padded == steps, tokens, -1).reshape(-1)


def _prefill_row(rows: _Rows, block_size: int, windows: frozenset[int | None], dtype: torch.dtype) -> PrefillRow:
    start, count, first_token = int(rows.starts[0]), int(rows.counts[0]), int(rows.first_tokens[0])
    seq_len = start + count
    blocks = rows.block_table[0, : -(-seq_len // block_size)].copy()
    masks: dict[int | None, torch.Tensor | None] = {}
    for window in windows:
        is_causal = start == 0 and (window is None or window >= seq_len)
        mask = None if is_causal else _mask(np.arange(start, seq_len)[None], seq_len, window, dtype)
        masks[window] = None if mask is None else mask[0, 0]
    return PrefillRow(
        first_token, first_token + count, seq_len, torch.from_numpy(blocks), _first_if_adjacent(blocks), masks
    )


def _first_if_adjacent(blocks: Ints) -> int | None:
    return int(blocks[0]) if bool((np.diff(blocks) == 1).all()) else None


def _as_slice(tokens: Ints) -> slice | torch.Tensor:
    """The same tokens, as a slice if they follow each other."""
    return (
        slice(int(tokens[0]), int(tokens[-1]) + 1) if bool((np.diff(tokens) == 1).all()) else torch.from_numpy(tokens)
    )


def _order(tokens: Ints, num_tokens: int) -> torch.Tensor | None:
    """Where each token stands among these, which hold each once, and -1 for padding."""
    if len(tokens) == num_tokens and bool((tokens == np.arange(num_tokens)).all()):
        return None
    places = np.flatnonzero(tokens >= 0)
    order = np.empty(num_tokens, np.int64)
    order[tokens[places]] = places
    return torch.from_numpy(order)


def _mask(positions: Ints, width: int, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
    """[num_rows, 1, queries, width] for queries at positions [num_rows, queries]; None if nothing is to be hidden."""
    sees_all = positions.min() == width - 1 and (window is None or positions.max() < window)
    if sees_all:
        return None
    query, key = positions[:, None, :, None], np.arange(width)
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(torch.from_numpy(hidden), float("-inf"))
