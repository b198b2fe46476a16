"""How ``paged_attention``'s tile programs divide their work, chosen on the host: untuned, and valid on every target."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.paged_attention.batch import MOST_DECODES
from parhelion.ops.paged_attention.contract import PagedAttention

PROGRAMS = 256
"""Programs that a decode step should have at least: about two for each of an H100's 132 processors."""

MOST_SPLITS = 64
"""Programs among which the keys of a row and a key head are divided, at most."""

SPLIT = 16
"""A split's tokens are a multiple of this; the tile program has it as a literal."""

SIBLINGS = (2, 4, 8)
"""Bounds of siblings that there is a program for; with more, rows are taken for rows of any length."""

LEAST_ROWS = 9
"""From here on that program serves; below, reading a sequence's keys once saves less than it costs."""

_STAGES = (2, 3, 5, 7)
"""Of the program for single tokens. Keys are found by way of the block table, and Triton gives each of the two loads a
part of the pipeline: two stages more are one more tile of keys on its way.
"""

PROMPT_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "varlen_late": (False, True),
    "varlen_tokens": (32, 64),
    "varlen_warps": (4, 8),
    "varlen_stages": (2, 3),
    "varlen_rows": (64, 128),
}
"""Of the program for prompts, what is worth trying."""

Config = TypeVar("Config", bound="AttentionConfig")


@dataclass(frozen=True)
class AttentionConfig:
    """Attributes:
    decode_tokens, decode_warps, decode_stages: of the program for single tokens: keys of a tile, Triton's warps and
        pipeline stages.
    programs: that a decode step should have at least; a row's keys are divided until there are so many.
    varlen_tokens, varlen_warps, varlen_stages: of the other program; half as many warps if its tile is not full.
    programmatic: see ``ops/programmatic.py``.
    varlen_rows: of the other program, query tokens times heads of a group in a full tile; a power of two.
    varlen_late: it weights a tile's values while it finds the weights of the next.
    """

    decode_tokens: int
    decode_warps: int
    decode_stages: int
    programs: int
    varlen_tokens: int
    varlen_warps: int
    varlen_stages: int
    programmatic: bool = False
    varlen_rows: int = 128
    varlen_late: bool = False


def untuned(c: PagedAttention, target: GemmTarget) -> AttentionConfig:
    """16 KiB of keys at a time for a single token, three deep: enough bytes in flight for a processor's share of the
    bandwidth. For more, 64 keys where the matrix unit keeps its operands out of the registers and works by itself,
    elsewhere 32, with which none spill.
    """
    tokens = max(16, min(128, 16384 // (c.head_dim * c.dtype.itemsize)))
    usual = AttentionConfig(1 << (tokens.bit_length() - 1), 4, 3, PROGRAMS, 32, 8, 2)
    if not target.wide_mma or c.dtype == torch.float32:
        return usual
    # Larger heads leave no room for more.
    fits = c.head_dim <= 128
    return replace(usual, varlen_tokens=64, varlen_stages=3 if fits else 2, varlen_late=fits)


def attention_candidates(c: PagedAttention, bucket: int, target: GemmTarget) -> list[AttentionConfig]:
    """The untuned config; then, for a few tokens, other tiles, depths and divisions of the program for single tokens,
    and for more, where prompts take the time, tiles and depths of the other one. Those that differ in little are first.
    """
    usual = untuned(c, target)
    if bucket > MOST_DECODES:
        return varied(usual, PROMPT_CHOICES)
    tokens = tuple(max(16, each) for each in (usual.decode_tokens // 2, usual.decode_tokens, usual.decode_tokens * 2))
    choices: dict[str, tuple[Any, ...]] = {
        "programs": (128, 256, 512, 1024),
        "decode_tokens": tokens,
        "decode_warps": (2, 4, 8),
        "decode_stages": _STAGES,
    }
    return varied(usual, choices)


def varied(usual: Config, choices: Mapping[str, tuple[Any, ...]]) -> list[Config]:
    """A config, and behind it the same with other values of these fields, those that differ in little first."""
    combinations = itertools.product(*choices.values())
    found = [replace(usual, **dict(zip(choices, values, strict=True))) for values in combinations]
    found.sort(key=lambda each: sum(getattr(each, name) != getattr(usual, name) for name in choices))
    return list(dict.fromkeys((usual, *found)))


def num_splits(c: PagedAttention, num_rows: int, max_seq_len: int, programs: int) -> int:
    """Programs over which a row's keys are spread, so that there are enough in all; a power of two."""
    longest = max_seq_len if c.sliding_window is None else min(max_seq_len, c.sliding_window)
    wanted = -(-programs // max(1, num_rows * c.num_kv_heads))
    most = max(1, min(MOST_SPLITS, -(-longest // SPLIT), wanted))
    return 1 << (most.bit_length() - 1)


def packed_tokens(c: PagedAttention, config: AttentionConfig, max_query_len: int) -> int:
    """Query tokens times heads of a group in a tile of the varlen kernel: a power of two, about what a row can have."""
    whole = 1 << (max_query_len * c.group - 1).bit_length()
    most = 32 if c.dtype == torch.float32 else config.varlen_rows
    return min(most, max(16, whole))


def siblings_packed(c: PagedAttention, max_siblings: int) -> int:
    """Query tokens times heads of a group in a tile of the program for rows with siblings; at least the 16 rows of a
    dot product.
    """
    return max(16, 1 << (max_siblings * c.group - 1).bit_length())


@functools.lru_cache(maxsize=1024)
def siblings_config(config: AttentionConfig, packed: int) -> KernelConfig:
    """Of the program for rows with siblings, whose tile of keys is an argument; a warp for each 8 of the queries that
    are a tile, lest registers are spilled.
    """
    return KernelConfig(num_warps=max(config.decode_warps, packed // 8), num_stages=config.decode_stages)


@functools.lru_cache(maxsize=1024)
def decode_config(config: AttentionConfig) -> KernelConfig:
    """Of the program for single tokens."""
    return KernelConfig((config.decode_tokens,), num_warps=config.decode_warps, num_stages=config.decode_stages)


@functools.lru_cache(maxsize=1024)
def combine_config(c: PagedAttention) -> KernelConfig:
    """A program combines one head of one row."""
    return KernelConfig((16,), num_warps=max(1, c.head_dim // 64))


@functools.lru_cache(maxsize=1024)
def varlen_config(config: AttentionConfig, packed: int) -> KernelConfig:
    """Of the program for rows of any length: 128 rows at a time to find the tile's own."""
    warps = config.varlen_warps if packed == config.varlen_rows else max(1, config.varlen_warps // 2)
    return KernelConfig((128,), num_warps=warps, num_stages=config.varlen_stages)
