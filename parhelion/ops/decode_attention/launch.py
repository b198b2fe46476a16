"""How ``fused_rope_attention`` is launched with its Gluon program: that one where every row has a single token, and
a few may be of one sequence; Helion's programs in every other step.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.decode_attention.candidates import worth_trying
from parhelion.ops.decode_attention.config import DecodeAttentionConfig, of_siblings, untuned
from parhelion.ops.fused_rope_attention.contract import FusedRopeAttention
from parhelion.ops.fused_rope_attention.launch import _combined
from parhelion.ops.fused_rope_attention.launch import build_inputs as build_helion_inputs
from parhelion.ops.fused_rope_attention.launch import launch as launch_helion
from parhelion.ops.fused_rope_attention.launch import timed_inputs as timed_helion_inputs
from parhelion.ops.fused_rope_attention.launch import timed_programs as timed_helion_programs
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner, target_of
from parhelion.ops.paged_attention.batch import MOST_DECODES, AttentionBatch
from parhelion.ops.paged_attention.single_rows import has_single_rows
from parhelion.ops.paged_attention.single_tokens import has_single_tokens
from parhelion.ops.paged_attention.tiling import LEAST_ROWS, SIBLINGS, num_splits

TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")
"""That the program is written for."""

HEAD_DIM = 128
"""That it takes."""

COLUMNS = (8, 16)
"""Of the matrix unit: heads that share a key head, of all rows of a sequence."""

KEYS = 16
"""Of a block, which has a multiple of them: a warp reads so many at a time."""

Config = DecodeAttentionConfig


def has_program(contract: FusedRopeAttention) -> bool:
    """Whether the program takes these static dimensions."""
    c = contract
    group, rest = divmod(c.num_heads, c.num_kv_heads)
    is_plain = (c.dtype, c.head_dim, c.sliding_window, c.soft_cap) == (torch.bfloat16, HEAD_DIM, None, None)
    return is_plain and group <= COLUMNS[0] and rest == 0 and c.block_size % KEYS == 0


def default_config(contract: FusedRopeAttention, bucket: int, target: GemmTarget) -> DecodeAttentionConfig:
    """Untuned."""
    return untuned(contract, bucket, target)


def candidates(contract: FusedRopeAttention, bucket: int, target: GemmTarget) -> list[DecodeAttentionConfig]:
    """What is worth trying; nothing but for steps of single tokens, and where the program runs."""
    if bucket > MOST_DECODES or target.name not in TARGETS or not has_program(contract):
        return []
    return worth_trying(untuned(contract, bucket, target), bucket)


def build_inputs(contract: FusedRopeAttention, bucket: int) -> list[tuple[Any, ...]]:
    """The steps of Helion's programs; with few rows too, some that have siblings."""
    steps = build_helion_inputs(contract, bucket)
    if 1 < bucket < LEAST_ROWS:
        steps += [_with_siblings(most, *each) for each in steps if each[4].max_query_len == 1 for most in SIBLINGS]
    return [_anywhere(*each) for each in steps]


def timed_inputs(contract: FusedRopeAttention, bucket: int) -> list[tuple[Any, ...]]:
    """The steps of Helion's programs."""
    return [_anywhere(*each) for each in timed_helion_inputs(contract, bucket)]


def timed_programs(bucket: int, config: DecodeAttentionConfig) -> tuple[int, Any]:
    """As of Helion's programs: whatever a row's keys are divided into."""
    return timed_helion_programs(bucket, config)


def launch(
    contract: FusedRopeAttention,
    run: Runner,
    config: DecodeAttentionConfig,
    *inputs: Any,
) -> Tensors:
    """See ``FusedRopeAttention``.

    Raises:
        ValueError: there is no program for what ``run`` launches on.
    """
    target = target_of(run)
    if target is not None and target not in TARGETS:
        known = ", ".join(TARGETS)
        raise ValueError(f"{contract.name} has a program in Gluon for {known}, and {target} is another target")
    kv_cache, batch = inputs[3:5]
    columns = _columns(contract, batch, num_tokens=inputs[0].shape[0])
    if columns is None or not has_program(contract):
        return launch_helion(contract, run, config, *inputs)
    return *_decode(contract, run, config, columns, *inputs), kv_cache


def _columns(contract: FusedRopeAttention, batch: AttentionBatch, num_tokens: int) -> int | None:
    """Of a program for these rows; None if it is not for them."""
    if has_single_rows(batch, num_tokens):
        return COLUMNS[0]
    if not has_single_tokens(batch, num_tokens):
        return None
    heads = batch.max_siblings * contract.num_heads // contract.num_kv_heads
    return next((each for each in COLUMNS if heads <= each), None)


def _decode(
    contract: FusedRopeAttention,
    run: Runner,
    config: DecodeAttentionConfig,
    columns: int,
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache: torch.Tensor,
    batch: AttentionBatch,
    cos_sin: torch.Tensor,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
) -> Tensors:
    c, num_tokens = contract, qkv.shape[0]
    num_sequences, slots = num_tokens, None
    if not has_single_rows(batch, num_tokens):
        config, slots = of_siblings(config), batch.row_slots
        # Of each two rows or more: how many a step has is not known where it is launched.
        num_sequences = max(1, num_tokens // 2)
    splits = num_splits(c.attention, num_sequences, batch.max_seq_len, config.programs)
    lse = qkv.new_empty((num_tokens, splits, c.num_heads), dtype=torch.float32)
    parts = qkv.new_empty((*lse.shape, c.head_dim), dtype=torch.float32 if splits > 1 else c.dtype)
    run(
        "decode_attention.decode_attention",
        _kernel_config(config.gluon_warps),
        qkv.contiguous(),
        positions,
        slot_mapping,
        kv_cache,
        cos_sin,
        q_weight,
        k_weight,
        batch.block_table,
        batch.seq_lens,
        slots,
        parts,
        lse,
        0.0 if c.epsilon is None else c.epsilon,
        c.scale,
        c.num_heads,
        c.num_kv_heads,
        c.head_dim,
        c.block_size,
        columns,
        splits > 1,
        config.ring,
        config.gluon_warps,
        config.programmatic,
    )
    return _combined(c, run, config, parts, lse, batch)


@functools.cache
def _kernel_config(num_warps: int) -> KernelConfig:
    return KernelConfig(num_warps=num_warps, num_stages=1)


def _with_siblings(most: int, *inputs: Any) -> tuple[Any, ...]:
    """The same, up to so many rows of a sequence."""
    batch = inputs[4]
    slots = batch.seq_lens.new_empty(batch.seq_lens.numel() + 1)[1:]
    return *inputs[:4], replace(batch, max_query_len=most, max_siblings=most, row_slots=slots), *inputs[5:]


def _anywhere(*inputs: Any) -> tuple[Any, ...]:
    """The same, the block table too at any address: it is a view of the engine's buffer of integers."""
    *before, batch, cos_sin = inputs[:6]
    table = batch.block_table.new_empty(batch.block_table.numel() + 1)[1:].view(batch.block_table.shape)
    return *before, replace(batch, block_table=table), cos_sin, *inputs[6:]
