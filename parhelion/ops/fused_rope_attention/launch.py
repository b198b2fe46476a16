"""How ``fused_rope_attention`` is launched: one program where every row has a single token, else as its two halves."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch

from parhelion.ops.arrival_counters import arrival_counters
from parhelion.ops.contract import Tensors
from parhelion.ops.fused_qk_norm_rope.contract import FusedQkNormRope
from parhelion.ops.fused_qk_norm_rope.launch import launch as launch_norm_rope
from parhelion.ops.fused_rope_attention.contract import FusedRopeAttention
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.heads_config import heads_config, in_halves
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner
from parhelion.ops.paged_attention.batch import MOST_DECODES, AttentionBatch
from parhelion.ops.paged_attention.launch import build_inputs as build_attention_inputs
from parhelion.ops.paged_attention.launch import launch as launch_attention
from parhelion.ops.paged_attention.launch import timed_inputs as timed_attention_inputs
from parhelion.ops.paged_attention.launch import timed_programs as timed_attention_programs
from parhelion.ops.paged_attention.tiling import (
    PROMPT_CHOICES,
    AttentionConfig,
    num_splits,
    untuned,
    varied,
)
from parhelion.ops.rope_and_cache.launch import launch as launch_rope


@dataclass(frozen=True)
class RopeAttentionConfig(AttentionConfig):
    """The choices of ``AttentionConfig``; its program for single tokens is this op's.

    Attributes:
        ahead: keys and values that a program for single tokens reads before it waits for its predecessor; a power of
            two, or 0.
        prefetched: keys and values behind those that it asks for meanwhile; a power of two, or 0.
        heads_first: neighbouring programs take neighbouring key heads of a row, not one head of neighbouring rows.
        rope_heads, rope_warps: of the first half where it is launched by itself: heads and warps of a program.
    """

    ahead: int = 0
    prefetched: int = 0
    heads_first: bool = False
    rope_heads: int = 8
    rope_warps: int = 2


Config = RopeAttentionConfig

AHEAD = ((32, 0), (64, 0), (0, 64), (64, 64))
"""Keys that are worth reading before waiting, and how many behind them are worth asking for."""

_MANY_ROWS = 64
"""From here on a program takes all keys of its row, and a processor has several programs at a time: the quickest are
those with few warps, which seldom wait for one another, and with a short pipeline, of which more fit.
"""


def default_config(contract: FusedRopeAttention, bucket: int, target: GemmTarget) -> RopeAttentionConfig:
    """Untuned."""
    usual = _with_rope(contract, bucket, untuned(contract.attention, target))
    return replace(usual, decode_warps=2, decode_stages=2) if target.wide_mma and bucket >= _MANY_ROWS else usual


def candidates(contract: FusedRopeAttention, bucket: int, target: GemmTarget) -> list[RopeAttentionConfig]:
    """What is worth trying."""
    usual = default_config(contract, bucket, target)
    if bucket > MOST_DECODES:
        return varied(usual, PROMPT_CHOICES)
    tokens = usual.decode_tokens
    choices: dict[str, tuple[Any, ...]] = {
        "programs": (64, 128, 256, 512),
        "decode_warps": (2, 4, 8),
        "decode_stages": (2, 3, 4),
        "heads_first": (False, True),
        "decode_tokens": (max(16, tokens // 2), tokens),
    }
    return varied(usual, choices)


def build_inputs(contract: FusedRopeAttention, bucket: int) -> list[tuple[Any, ...]]:
    """The steps of ``paged_attention``."""
    return [_as_own(contract, *each) for each in build_attention_inputs(contract.attention, bucket)]


def timed_inputs(contract: FusedRopeAttention, bucket: int) -> list[tuple[Any, ...]]:
    """The steps of ``paged_attention``."""
    return [_as_own(contract, *each) for each in timed_attention_inputs(contract.attention, bucket)]


def timed_programs(bucket: int, config: RopeAttentionConfig) -> tuple[int, AttentionConfig]:
    """As of ``paged_attention``."""
    # A step of single tokens does not launch the first half by itself.
    single = replace(config, rope_heads=1, rope_warps=1)
    return timed_attention_programs(bucket, config if bucket > MOST_DECODES else single)


def launch(
    contract: FusedRopeAttention,
    run: Runner,
    config: RopeAttentionConfig,
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache: torch.Tensor,
    batch: AttentionBatch,
    cos_sin: torch.Tensor,
    *weights: torch.Tensor,
) -> Tensors:
    """See ``FusedRopeAttention``."""
    num_tokens, num_rows = qkv.shape[0], batch.seq_lens.shape[0]
    if num_tokens == num_rows and 1 in (batch.max_query_len, num_tokens):
        return _decode(
            contract, run, config, qkv, positions, slot_mapping, kv_cache, batch, cos_sin, *weights
        ), kv_cache
    heads = KernelConfig(
        (config.rope_heads,), ((1, 0, 2),), num_warps=config.rope_warps, programmatic=config.programmatic
    )
    rope = contract.rope
    inputs = (qkv, positions, slot_mapping, kv_cache, cos_sin, *weights)
    if isinstance(rope, FusedQkNormRope):
        query, _ = launch_norm_rope(rope, run, heads, *inputs)
    else:
        query, _ = launch_rope(rope, run, heads, *inputs)
    return launch_attention(contract.attention, run, config, query, kv_cache, batch), kv_cache


def _as_own(
    c: FusedRopeAttention, query: torch.Tensor, kv_cache: torch.Tensor, batch: AttentionBatch
) -> tuple[Any, ...]:
    """Empty inputs for the rows of these."""
    num_tokens = query.shape[0]
    qkv = torch.empty((num_tokens, (c.num_heads + 2 * c.num_kv_heads) * c.head_dim), dtype=c.dtype)
    # At any address: they are views of the engine's buffer of integers.
    positions, slots = (torch.empty(num_tokens + 1, dtype=torch.int64)[1:] for _ in range(2))
    weights = [torch.empty(c.head_dim, dtype=c.dtype) for _ in range(c.num_weights - 1)]
    return qkv, positions, slots, kv_cache, batch, torch.empty(c.max_position, c.head_dim), *weights


def _decode(
    contract: FusedRopeAttention,
    run: Runner,
    config: RopeAttentionConfig,
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache: torch.Tensor,
    batch: AttentionBatch,
    cos_sin: torch.Tensor,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    c = contract
    num_tokens, half = qkv.shape[0], c.head_dim // 2
    group = c.num_heads // c.num_kv_heads
    out = qkv.new_empty((num_tokens, c.num_heads * c.head_dim))
    splits = num_splits(c.attention, num_tokens, batch.max_seq_len, config.programs)
    lse = torch.empty((num_tokens, splits, c.num_kv_heads, group), dtype=torch.float32, device=qkv.device)
    is_split = splits > 1
    parts = lse.new_empty((num_tokens, splits, c.num_heads * c.head_dim)) if is_split else out[:, None]
    run(
        "fused_rope_attention.rope_attention_decode",
        _decode_config(config),
        in_halves(qkv, c.head_dim),
        qkv.unflatten(1, (-1, c.head_dim)),
        positions,
        slot_mapping,
        kv_cache.view(-1, c.head_dim),
        cos_sin.view(-1, 2, half),
        None if q_weight is None else q_weight.view(2, -1),
        None if k_weight is None else k_weight.view(2, -1),
        batch.block_table,
        batch.seq_lens,
        out.view(num_tokens, c.num_kv_heads, group, -1),
        parts.view(num_tokens, splits, c.num_kv_heads, group, -1),
        out.view(num_tokens, c.num_kv_heads, -1),
        parts.view(num_tokens, splits, c.num_kv_heads, -1),
        lse,
        arrival_counters(qkv.device, num_tokens * c.num_kv_heads) if is_split else None,
        0.0 if c.epsilon is None else c.epsilon,
        c.block_size,
        c.scale,
        c.sliding_window,
        c.soft_cap,
        is_split,
        config.programmatic,
        config.ahead,
        config.prefetched if config.programmatic else 0,
        2 * config.decode_warps,
        None,
    )
    return out


@functools.lru_cache(maxsize=1024)
def _decode_config(config: RopeAttentionConfig) -> KernelConfig:
    order = ((1, 2, 0, 3, 4),) if config.heads_first else ()
    return KernelConfig((config.decode_tokens,), order, num_warps=config.decode_warps, num_stages=config.decode_stages)


def _with_rope(contract: FusedRopeAttention, bucket: int, attention: AttentionConfig) -> RopeAttentionConfig:
    heads = heads_config(contract.num_heads + 2 * contract.num_kv_heads, contract.head_dim, bucket)
    names = AttentionConfig.__dataclass_fields__
    made = RopeAttentionConfig(**{name: getattr(attention, name) for name in names})
    return replace(made, rope_heads=heads.block_sizes[0], rope_warps=heads.num_warps)
