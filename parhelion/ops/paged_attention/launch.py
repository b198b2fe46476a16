"""How ``paged_attention`` is launched: rows with a single token by one program or, where several are of one sequence,
by another, the others by a third.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.launching import Runner, build_sizes
from parhelion.ops.paged_attention.batch import MOST_DECODES, AttentionBatch
from parhelion.ops.paged_attention.contract import PagedAttention
from parhelion.ops.paged_attention.tiling import (
    LEAST_ROWS,
    MOST_SPLITS,
    SIBLINGS,
    SPLIT,
    AttentionConfig,
    attention_candidates,
    combine_config,
    decode_config,
    num_splits,
    packed_tokens,
    siblings_config,
    siblings_packed,
    untuned,
    varlen_config,
)

Config = AttentionConfig


def default_config(contract: PagedAttention, bucket: int, target: GemmTarget) -> AttentionConfig:
    """Untuned."""
    return untuned(contract, target)


def candidates(contract: PagedAttention, bucket: int, target: GemmTarget) -> list[AttentionConfig]:
    """What is worth trying."""
    return attention_candidates(contract, bucket, target)


def build_inputs(contract: PagedAttention, bucket: int) -> list[tuple[torch.Tensor, torch.Tensor, AttentionBatch]]:
    """Steps of single tokens, of such with siblings, of one prompt, and of prompts and single tokens; with keys for one
    split and for several.

    ``max_query_len`` is that of all the tokens, as in the engine: a tighter bound may ask for smaller tiles than these.
    """
    # The bounds at which tiles are smallest and largest; a single token is a step of single tokens.
    bounds = (bucket // 2 + 1, bucket) if bucket > 1 else ()
    found = []
    for num_tokens in build_sizes(bucket):
        # Two splits among others, so that the number of splits is not taken for a multiple of 16.
        for max_seq_len in (SPLIT, 2 * SPLIT, 64 * SPLIT):
            found.append(_empty_step(contract, num_tokens, num_tokens, 1, max_seq_len))
            siblings = SIBLINGS if LEAST_ROWS <= bucket <= MOST_DECODES else ()
            found += [_empty_step(contract, num_tokens, num_tokens, bucket, max_seq_len, each) for each in siblings]
            for bound, rows in itertools.product(bounds, (2, 3, 1)):
                found.append(_empty_step(contract, num_tokens, rows, bound, max_seq_len))
    return found


def timed_inputs(contract: PagedAttention, bucket: int) -> list[tuple[torch.Tensor, torch.Tensor, AttentionBatch]]:
    """Steps of single tokens, beyond ``MOST_DECODES`` of prompts; with keys for one split and for several."""
    found = []
    for num_tokens in build_sizes(bucket):
        if bucket <= MOST_DECODES:
            lens = (SPLIT, 2 * SPLIT, 64 * SPLIT)
            found += [_empty_step(contract, num_tokens, num_tokens, 1, each) for each in lens]
        else:
            sizes = itertools.product((2 * SPLIT, 64 * SPLIT), (2, 3, 1))
            found += [_empty_step(contract, num_tokens, rows, bucket, each) for each, rows in sizes]
    return found


def timed_programs(bucket: int, config: AttentionConfig) -> tuple[int, AttentionConfig]:
    """A bucket and a config whose ``timed_inputs`` launch what is launched with these: the same for all steps of single
    tokens, whatever their keys are divided into.
    """
    if bucket > MOST_DECODES:
        return bucket, config
    return MOST_DECODES, replace(config, programs=MOST_SPLITS * MOST_DECODES)


def launch(
    contract: PagedAttention,
    run: Runner,
    config: AttentionConfig,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    batch: AttentionBatch,
) -> torch.Tensor:
    """See ``PagedAttention``."""
    num_tokens, num_rows = query.shape[0], batch.seq_lens.shape[0]
    query, out = query.contiguous(), torch.empty_like(query, memory_format=torch.contiguous_format)
    slots = kv_cache.view(-1, *kv_cache.shape[2:])
    if num_tokens == num_rows and 1 in (batch.max_query_len, num_tokens):
        decode(contract, run, config, query, slots, batch, out, mixed=False)
        return out
    if has_siblings(batch):
        parts, lse = decode_siblings(contract, run, config, query, slots, batch, out)
        if parts is not out:
            combine(contract, run, config, parts, lse, batch, out, mixed=False)
        return out
    # With a single row there is no telling what a graph will replay it for, and nothing to gain.
    least_query_len = 2 if num_rows > 1 else 0
    varlen(contract, run, config, query, slots, batch, out, least_query_len)
    if least_query_len == 2:
        decode(contract, run, config, query, slots, batch, out, mixed=True)
    return out


def decode(
    contract: PagedAttention,
    run: Runner,
    config: AttentionConfig,
    query: torch.Tensor,
    slots: torch.Tensor,
    batch: AttentionBatch,
    out: torch.Tensor,
    mixed: bool,
) -> None:
    """The rows with a single token: all of them or, ``mixed``, those that there are."""
    c = contract
    num_rows = batch.seq_lens.shape[0]
    splits = num_splits(c, num_rows, batch.max_seq_len, config.programs)
    lse = torch.empty((num_rows, splits, c.num_kv_heads, c.group), dtype=torch.float32, device=query.device)
    parts = out if splits == 1 else lse.new_empty((num_rows, splits, c.num_heads, c.head_dim))
    run(
        "paged_attention.paged_attention_decode",
        decode_config(config),
        query.view(-1, c.head_dim),
        slots,
        batch.block_table,
        batch.seq_lens,
        batch.query_start_loc,
        parts.view(-1, c.head_dim),
        lse,
        c.block_size,
        c.scale,
        c.sliding_window,
        c.soft_cap,
        mixed,
        splits > 1,
        config.programmatic,
        None,
    )
    if splits > 1:
        combine(c, run, config, parts, lse.flatten(2), batch, out, mixed)


def has_siblings(batch: AttentionBatch) -> bool:
    """Whether the program for rows with siblings serves a step; few rows, more than there are choices for, or more of a
    sequence than it has room for, are taken for rows of any length.
    """
    return batch.max_siblings in SIBLINGS and LEAST_ROWS <= batch.seq_lens.shape[0] <= MOST_DECODES


def decode_siblings(
    contract: PagedAttention,
    run: Runner,
    config: AttentionConfig,
    query: torch.Tensor,
    slots: torch.Tensor,
    batch: AttentionBatch,
    out: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of single tokens of which some are siblings. Returns what the splits have found, as
    ``paged_attention_combine`` is given it; that is ``out`` itself if there is one split.
    """
    c, siblings = contract, batch.max_siblings
    assert batch.row_slots is not None, "rows with siblings say whose they are"
    num_rows = query.shape[0]
    # As many programs as if each row had all its siblings: those of the rows behind the first end at once.
    splits = num_splits(c, max(1, num_rows // siblings), batch.max_seq_len, config.programs)
    lse = torch.empty((num_rows, splits, c.num_kv_heads, c.group), dtype=torch.float32, device=query.device)
    parts = out if splits == 1 else lse.new_empty((num_rows, splits, c.num_heads, c.head_dim))
    packed = siblings_packed(c, siblings)
    run(
        "paged_attention.paged_attention_siblings",
        siblings_config(config, packed),
        query.view(-1, c.head_dim),
        slots.view(-1),
        batch.block_table,
        batch.seq_lens,
        batch.row_slots,
        parts.view(-1, c.head_dim),
        lse,
        lse.view(-1),
        siblings,
        packed,
        c.block_size,
        c.scale,
        c.sliding_window,
        c.soft_cap,
        config.programmatic,
        config.decode_tokens,
    )
    return parts, lse.flatten(2)


def combine(
    contract: PagedAttention,
    run: Runner,
    config: AttentionConfig,
    parts: torch.Tensor,
    lse: torch.Tensor,
    batch: AttentionBatch,
    out: torch.Tensor,
    mixed: bool,
) -> None:
    """What the splits of rows with a single token have found (see ``paged_attention_combine``), put together in out."""
    c = contract
    run(
        "paged_attention.paged_attention_combine",
        combine_config(c),
        parts,
        lse,
        batch.query_start_loc,
        out.view(-1, c.num_heads, c.head_dim),
        mixed,
        config.programmatic,
    )


def varlen(
    contract: PagedAttention,
    run: Runner,
    config: AttentionConfig,
    query: torch.Tensor,
    slots: torch.Tensor,
    batch: AttentionBatch,
    out: torch.Tensor,
    least_query_len: int,
) -> None:
    """The rows with at least ``least_query_len`` tokens, and the padding behind the last row."""
    c = contract
    packed = packed_tokens(c, config, batch.max_query_len)
    run(
        "paged_attention.paged_attention_varlen",
        varlen_config(config, packed),
        query.view(-1, c.head_dim),
        slots.view(-1),
        batch.block_table,
        batch.seq_lens,
        batch.query_start_loc,
        out.view(-1, c.head_dim),
        c.num_kv_heads,
        c.group,
        c.block_size,
        c.scale,
        c.sliding_window,
        c.soft_cap,
        least_query_len,
        packed,
        config.varlen_late,
        config.programmatic,
        config.varlen_tokens,
    )


def _empty_step(
    c: PagedAttention, num_tokens: int, num_rows: int, max_query_len: int, max_seq_len: int, max_siblings: int = 1
) -> tuple[torch.Tensor, torch.Tensor, AttentionBatch]:
    """Lengths and offsets: views of the engine's buffer of integers, at any address; sizes are odd where they can."""

    def integers(size: int) -> torch.Tensor:
        return torch.empty(size + 1, dtype=torch.int32)[1:]

    batch = AttentionBatch(
        block_table=torch.empty((num_rows, 5), dtype=torch.int32),
        seq_lens=integers(num_rows),
        query_start_loc=integers(num_rows + 1),
        max_query_len=max_query_len,
        max_seq_len=max_seq_len,
        max_siblings=max_siblings,
        row_slots=integers(num_rows) if max_siblings > 1 else None,
    )
    query = torch.empty((num_tokens, c.num_heads * c.head_dim), dtype=c.dtype)
    return query, torch.empty((3, c.block_size, 2 * c.num_kv_heads, c.head_dim), dtype=c.dtype), batch
