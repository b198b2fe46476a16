"""How ``fused_rope_attention`` is launched: one program where every row has a single token and a sequence of its own,
else as its two halves.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.dynamic_per_token_quant import DynamicPerTokenQuant
from parhelion.ops.dynamic_per_token_scaled_fp8_quant.contract import DynamicPerTokenScaledFp8Quant
from parhelion.ops.dynamic_per_token_scaled_fp8_quant.launch import launch as launch_quant
from parhelion.ops.dynamic_per_token_scaled_int8_quant.contract import DynamicPerTokenScaledInt8Quant
from parhelion.ops.fused_qk_norm_rope.contract import FusedQkNormRope
from parhelion.ops.fused_qk_norm_rope.launch import launch as launch_norm_rope
from parhelion.ops.fused_rope_attention.contract import FusedRopeAttention
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.heads_config import heads_config, in_halves
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner
from parhelion.ops.paged_attention.batch import MOST_DECODES, AttentionBatch
from parhelion.ops.paged_attention.launch import build_inputs as build_attention_inputs
from parhelion.ops.paged_attention.launch import combine, decode_siblings, has_siblings
from parhelion.ops.paged_attention.launch import launch as launch_attention
from parhelion.ops.paged_attention.launch import timed_inputs as timed_attention_inputs
from parhelion.ops.paged_attention.launch import timed_programs as timed_attention_programs
from parhelion.ops.paged_attention.tiling import (
    MOST_SPLITS,
    PROMPT_CHOICES,
    AttentionConfig,
    num_splits,
    untuned,
    varied,
)
from parhelion.ops.rope_and_cache.launch import launch as launch_rope
from parhelion.ops.row_config import row_config


@dataclass(frozen=True)
class RopeAttentionConfig(AttentionConfig):
    """The choices of ``AttentionConfig``; its program for single tokens is this op's.

    Attributes:
        ahead: keys and values that a program for single tokens reads before it waits for its predecessor; a power of
            two, or 0.
        prefetched: keys and values behind those that it asks for meanwhile; a power of two, or 0.
        lookup_ahead: a program for single tokens looks the block numbers of a tile of keys up while it computes the
            tile before, and waits for them there; else it does so in the iteration that reads the keys, and Triton
            pipelines both: it takes two stages more for one more tile on its way.
        heads_first: neighbouring programs take neighbouring key heads of a row, not one head of neighbouring rows.
        rope_heads, rope_warps: of the first half where it is launched by itself: heads and warps of a program.
    """

    ahead: int = 0
    prefetched: int = 0
    lookup_ahead: bool = True
    heads_first: bool = False
    rope_heads: int = 8
    rope_warps: int = 2


Config = RopeAttentionConfig

AHEAD = ((32, 0), (64, 0), (0, 64), (64, 64))
"""Keys that are worth reading before waiting, and how many behind them are worth asking for."""

TOGETHER = 4
"""Splits that are added up at a time, so many loads of a row's in flight together."""

_QUANT: Mapping[torch.dtype, type[DynamicPerTokenQuant]] = {
    contract.quant_dtype: contract for contract in (DynamicPerTokenScaledFp8Quant, DynamicPerTokenScaledInt8Quant)
}

_FEW_ROWS = 2
"""Up to here half as many programs as usual: each reads keys and values of 16 tokens at least."""

_MANY_ROWS = 64
"""From here on a program takes all keys of its row, and a processor has several programs at a time: the quickest are
those with few warps, which seldom wait for one another.
"""


def default_config(contract: FusedRopeAttention, bucket: int, target: GemmTarget) -> RopeAttentionConfig:
    """Untuned. A short pipeline: more programs fit on a processor, and most of their keys are in flight anyway."""
    usual = _with_rope(contract, bucket, untuned(contract.attention, target))
    if bucket <= _FEW_ROWS:
        usual = replace(usual, programs=usual.programs // 2)
    if not target.wide_mma:
        return usual
    return replace(usual, decode_stages=2, decode_warps=2 if bucket >= _MANY_ROWS else usual.decode_warps)


def candidates(contract: FusedRopeAttention, bucket: int, target: GemmTarget) -> list[RopeAttentionConfig]:
    """What is worth trying."""
    usual = default_config(contract, bucket, target)
    if bucket > MOST_DECODES:
        return varied(usual, PROMPT_CHOICES)
    # What is found there is launched among others: where launches overlap, it is sought as it will run.
    sought = replace(usual, programmatic=True, ahead=64) if target.programmatic else usual
    return list(dict.fromkeys([usual, *_deep(sought), *_shallow(sought)]))


def _deep(sought: RopeAttentionConfig) -> list[RopeAttentionConfig]:
    """With block numbers looked up when keys are read, and stages for two or three tiles on their way. An even number
    of stages makes the same code as one less.
    """
    prefetched = 64 if sought.programmatic else 0
    deep = replace(sought, lookup_ahead=False, prefetched=prefetched, programs=128, decode_warps=8, decode_stages=5)
    choices: dict[str, tuple[Any, ...]] = {
        "prefetched": (prefetched, 0),
        "programs": (128, 64),
        "decode_warps": (8, 4),
        "decode_stages": (5, 7),
    }
    return [each for each in varied(deep, choices) if each.decode_warps == 8 or each.decode_stages == 5]


def _shallow(sought: RopeAttentionConfig) -> list[RopeAttentionConfig]:
    """With a short pipeline, and block numbers that are carried from tile to tile."""
    tokens = sought.decode_tokens
    choices: dict[str, tuple[Any, ...]] = {
        "programs": (64, 128, 256, 512),
        "decode_warps": (2, 4, 8),
        "decode_stages": (2, 3, 4),
        "heads_first": (False, True),
        "decode_tokens": (max(16, tokens // 2), tokens),
    }
    return varied(sought, choices)


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
    inputs = (qkv, positions, slot_mapping, kv_cache)
    if num_tokens == num_rows and 1 in (batch.max_query_len, num_tokens):
        return *_decode(contract, run, config, *inputs, batch, cos_sin, *weights), kv_cache
    heads = KernelConfig(
        (config.rope_heads,), ((1, 0, 2),), num_warps=config.rope_warps, programmatic=config.programmatic
    )
    rope = contract.rope
    if isinstance(rope, FusedQkNormRope):
        query, _ = launch_norm_rope(rope, run, heads, *inputs, cos_sin, *weights)
    else:
        query, _ = launch_rope(rope, run, heads, *inputs, cos_sin, *weights)
    if has_siblings(batch):
        slots, out = kv_cache.view(-1, *kv_cache.shape[2:]), torch.empty_like(query)
        carrying = _carrying_as_many(config)
        parts, lse = decode_siblings(contract.attention, run, carrying, query, slots, batch, out)
        return *_combined(contract, run, config, parts, lse, batch), kv_cache
    out = launch_attention(contract.attention, run, config, query, kv_cache, batch)
    return *_quantized(contract, run, config, out), kv_cache


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
) -> Tensors:
    c = contract
    num_tokens, half = qkv.shape[0], c.head_dim // 2
    group = c.num_heads // c.num_kv_heads
    splits = num_splits(c.attention, num_tokens, batch.max_seq_len, config.programs)
    is_split = splits > 1
    heads = (num_tokens, splits, c.num_heads)
    lse = torch.empty(heads, dtype=torch.float32, device=qkv.device)
    parts = torch.empty((*heads, c.head_dim), dtype=lse.dtype if is_split else c.dtype, device=qkv.device)
    run(
        "fused_rope_attention.rope_attention_decode",
        _decode_config(config),
        in_halves(qkv, c.head_dim),
        qkv.unflatten(1, (-1, c.head_dim)),
        positions,
        slot_mapping,
        kv_cache.view(-1),
        cos_sin.view(-1, 2, half),
        None if q_weight is None else q_weight.view(2, -1),
        None if k_weight is None else k_weight.view(2, -1),
        batch.block_table,
        batch.seq_lens,
        parts.view(num_tokens, splits, c.num_kv_heads, group, -1),
        lse.view(num_tokens, splits, c.num_kv_heads, group),
        0.0 if c.epsilon is None else c.epsilon,
        c.block_size,
        c.scale,
        c.sliding_window,
        c.soft_cap,
        is_split,
        config.programmatic,
        config.ahead,
        config.prefetched if config.programmatic else 0,
        config.lookup_ahead,
        None,
    )
    return _combined(c, run, config, parts, lse, batch)


def _combined(
    contract: FusedRopeAttention,
    run: Runner,
    config: RopeAttentionConfig,
    parts: torch.Tensor,
    lse: torch.Tensor,
    batch: AttentionBatch,
) -> Tensors:
    """What the splits of single tokens have found, as the op returns it; a single split has found all of it."""
    c, num_tokens = contract, parts.shape[0]
    if lse.shape[1] == 1:
        return _quantized(c, run, config, parts.view(num_tokens, -1))
    if c.quant_dtype is None:
        out = parts.new_empty((num_tokens, c.num_heads * c.head_dim), dtype=c.dtype)
        combine(c.attention, run, config, parts, lse, batch, out, mixed=False)
        return (out,)
    codes = torch.empty((num_tokens, c.num_heads * c.head_dim), dtype=c.quant_dtype, device=parts.device)
    scales = torch.empty((num_tokens, 1), dtype=torch.float32, device=parts.device)
    run(
        "fused_rope_attention.combine_and_quantize",
        KernelConfig(num_warps=_row_config(c, num_tokens).num_warps),
        parts,
        lse,
        codes.view(num_tokens, c.num_heads, -1),
        scales.squeeze(1),
        MOST_SPLITS,
        TOGETHER,
        config.programmatic,
    )
    return codes, scales


def _quantized(contract: FusedRopeAttention, run: Runner, config: RopeAttentionConfig, out: torch.Tensor) -> Tensors:
    """Attention's output [M, num_heads * head_dim] as the op returns it."""
    if contract.quant_dtype is None:
        return (out,)
    quant = _QUANT[contract.quant_dtype](out.shape[1], contract.dtype)
    rows = replace(_row_config(contract, out.shape[0]), programmatic=config.programmatic)
    return launch_quant(quant, run, rows, out)


def _row_config(contract: FusedRopeAttention, num_tokens: int) -> KernelConfig:
    return row_config(contract.num_heads * contract.head_dim, num_tokens)


def _carrying_as_many(config: RopeAttentionConfig) -> RopeAttentionConfig:
    """For the program of rows with siblings, which looks block numbers up ahead: stages for as many tiles."""
    return config if config.lookup_ahead else replace(config, decode_stages=1 + (config.decode_stages - 1) // 2)


@functools.lru_cache(maxsize=1024)
def _decode_config(config: RopeAttentionConfig) -> KernelConfig:
    order = ((1, 2, 0, 3, 4),) if config.heads_first else ()
    return KernelConfig((config.decode_tokens,), order, num_warps=config.decode_warps, num_stages=config.decode_stages)


def _with_rope(contract: FusedRopeAttention, bucket: int, attention: AttentionConfig) -> RopeAttentionConfig:
    num_heads = contract.num_heads + 2 * contract.num_kv_heads
    heads = heads_config(num_heads, contract.head_dim, bucket)
    rope_heads, rope_warps = heads.block_sizes[0], heads.num_warps
    if bucket > MOST_DECODES and 32 <= 1 << (num_heads - 1).bit_length() <= 64 and contract.head_dim <= 128:
        # A program takes a token whole: that many of them are on their way at a time.
        rope_heads, rope_warps = 1 << (num_heads - 1).bit_length(), 4
    names = AttentionConfig.__dataclass_fields__
    made = RopeAttentionConfig(**{name: getattr(attention, name) for name in names})
    return replace(made, rope_heads=rope_heads, rope_warps=rope_warps)
