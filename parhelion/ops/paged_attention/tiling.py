"""How ``paged_attention``'s tile programs divide their work, chosen on the host: untuned, and valid on every target."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.paged_attention.contract import PagedAttention

PROGRAMS = 512
"""Programs that a decode step should have at least: about four for each of an H100's 132 processors."""

MOST_SPLITS = 64
"""Programs among which the keys of a row and a key head are divided, at most."""

SPLIT = 64
"""A split's tokens are a multiple of this; the tile program has it as a literal."""

MOST_PACKED = 128
"""Query tokens times heads of a group that a program of the varlen kernel takes, at most."""


@dataclass(frozen=True)
class Tiling:
    """Attributes:
    block_sizes: of the tile program's loops, in order.
    num_warps, num_stages: as Triton takes them.
    """

    block_sizes: tuple[int, ...]
    num_warps: int
    num_stages: int


def num_splits(c: PagedAttention, num_rows: int, max_seq_len: int) -> int:
    """Programs over which a row's keys are spread, so that there are enough in all; a power of two."""
    longest = max_seq_len if c.sliding_window is None else min(max_seq_len, c.sliding_window)
    wanted = -(-PROGRAMS // max(1, num_rows * c.num_kv_heads))
    most = max(1, min(MOST_SPLITS, -(-longest // SPLIT), wanted))
    return 1 << (most.bit_length() - 1)


def packed_tokens(c: PagedAttention, max_query_len: int) -> int:
    """Query tokens times heads of a group in a tile of the varlen kernel: a power of two, about what a row can have."""
    whole = 1 << (max_query_len * c.group - 1).bit_length()
    most = 32 if c.dtype == torch.float32 else MOST_PACKED
    return min(most, max(16, whole))


def decode_tiling(c: PagedAttention) -> Tiling:
    """16 KiB of keys at a time, three deep: enough bytes in flight for a processor's share of the bandwidth."""
    tokens = max(16, min(128, 16384 // (c.head_dim * c.dtype.itemsize)))
    return Tiling((1 << (tokens.bit_length() - 1),), 4, 3)


def combine_tiling(c: PagedAttention) -> Tiling:
    """A program combines one head of one row."""
    return Tiling((16,), max(1, c.head_dim // 64), 1)


def varlen_tiling(c: PagedAttention, packed: int, target: GemmTarget) -> Tiling:
    """128 rows at a time to find the tile's own; 64 keys where the matrix unit keeps its operands out of the registers,
    elsewhere 32, with which none spill.
    """
    tokens = 64 if target.wide_mma and c.dtype != torch.float32 else 32
    return Tiling((128, tokens), 8 if packed == MOST_PACKED else 4, 2)
