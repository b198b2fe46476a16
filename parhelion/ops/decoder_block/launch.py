"""How ``decoder_block`` is launched: one program a processor, all of them at once, as they wait for one another."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch

from parhelion.ops.arrival_counters import arrival_counters
from parhelion.ops.contract import Tensors
from parhelion.ops.decoder_block.candidates import worth_trying, worth_trying_rows
from parhelion.ops.decoder_block.config import MOST_SPLITS, DecoderBlockConfig, untuned, untuned_rows
from parhelion.ops.decoder_block.contract import MOST_TOKENS, DecoderBlock
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.inputs import empty_inputs
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner, build_sizes, target_of
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.paged_attention.single_tokens import has_single_tokens

NUM_COUNTERS = 8
"""Arrivals that programs count, zeros between launches."""

NUM_ROW_COUNTERS = 512
"""The same where groups of programs wait for one another too."""

Config = DecoderBlockConfig


def default_config(contract: DecoderBlock, bucket: int, target: GemmTarget) -> DecoderBlockConfig:
    """Untuned."""
    return untuned(contract, target) if bucket == 1 else untuned_rows(contract, min(bucket, MOST_TOKENS), target)


def candidates(contract: DecoderBlock, bucket: int, target: GemmTarget) -> list[DecoderBlockConfig]:
    """What is worth trying; nothing for more tokens than there is a program for, and where none runs."""
    if bucket > contract.most_tokens or target.name not in contract.targets:
        return []
    return worth_trying(contract, target) if bucket == 1 else worth_trying_rows(contract, bucket, target)


def build_inputs(contract: DecoderBlock, bucket: int) -> list[tuple[Any, ...]]:
    """Steps of single tokens, and of such with siblings, their integers at any address: they are views of the engine's
    buffer. All that a bucket has are launched alike, so a few say what does not follow their number.
    """
    if bucket == 1:
        return [_built(contract, 1)]
    # How many siblings there may be makes no difference, if there may be some.
    return [_built(contract, size, each) for size in build_sizes(bucket) if size <= bucket for each in (1, 2)]


def _built(contract: DecoderBlock, num_tokens: int, max_siblings: int = 1) -> tuple[Any, ...]:
    hidden, residual, positions, slots, kv_cache, batch, *weights = empty_inputs(contract, num_tokens)
    assert isinstance(batch, AttentionBatch)
    num_rows, width = batch.block_table.shape
    # A table's rows are as long as an engine's longest text: of an odd length nothing is taken for granted.
    table = _anywhere(batch.block_table.new_empty(num_rows, 2 * width + 1))
    own = replace(batch, block_table=table, seq_lens=_anywhere(batch.seq_lens))
    if max_siblings > 1:
        own = replace(own, max_siblings=max_siblings, row_slots=_anywhere(batch.seq_lens))
    return hidden, residual, _anywhere(positions), _anywhere(slots), kv_cache, own, *weights


def launch(
    contract: DecoderBlock,
    run: Runner,
    config: DecoderBlockConfig,
    hidden: torch.Tensor,
    residual: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache: torch.Tensor,
    batch: AttentionBatch,
    *weights: torch.Tensor,
) -> Tensors:
    """See ``DecoderBlock``. The config says which program it is: of one token, or of up to ``most_tokens`` of as many
    rows.

    Raises:
        ValueError: there are other tokens or rows than the program is for, there is no program for what ``run``
            launches on, or not all programs would run at once.
    """
    c = contract
    new_hidden, new_residual = torch.empty_like(hidden), torch.empty_like(residual)
    if hidden.shape[0] == 0:
        return new_hidden, new_residual, kv_cache
    _check(c, run, config, hidden, batch)
    of_qkv, of_attention, of_out, of_gate_up, of_down = c.weights_by_part(weights)
    cos_sin, q_weight, k_weight = of_attention if c.head_epsilon is not None else (*of_attention, None, None)
    of_rows = config.parts > 0
    run(
        "decoder_block.decoder_rows" if of_rows else "decoder_block.decoder_block",
        _kernel_config(config.warps, config.programmatic),
        hidden,
        residual,
        positions,
        slot_mapping,
        kv_cache,
        batch.block_table,
        batch.seq_lens,
        *([batch.row_slots] if of_rows else []),
        *of_qkv,
        cos_sin,
        q_weight,
        k_weight,
        *of_out,
        *of_gate_up,
        *of_down,
        new_hidden,
        new_residual,
        hidden.new_empty(row_scratch_size(c, config) if of_rows else scratch_size(c), dtype=torch.float32),
        arrival_counters(hidden.device, NUM_ROW_COUNTERS if of_rows else NUM_COUNTERS),
        c.epsilon,
        0.0 if c.head_epsilon is None else c.head_epsilon,
        c.scale,
        c.hidden_size,
        c.num_heads,
        c.num_kv_heads,
        c.head_dim,
        c.intermediate_size,
        c.block_size,
        *([_padded(hidden.shape[0])] if of_rows else []),
        config.num_programs,
        config.tile_k,
        config.ring,
        config.in_flight,
        config.keys_a_program,
        *([config.parts, config.down_parts, config.rounds, config.warps] if of_rows else []),
        config.producer_warps,
        config.programmatic,
    )
    return new_hidden, new_residual, kv_cache


def scratch_size(contract: DecoderBlock) -> int:
    """Float32 numbers of what programs hand each other, most of it in bfloat16: qkv, what attention's projection adds,
    what is activated, and what up to ``MOST_SPLITS`` programs have found for each head, with its logarithm.
    """
    c = contract
    rounded = c.qkv_size + c.hidden_size + c.intermediate_size + MOST_SPLITS * c.attended_size
    return rounded // 2 + MOST_SPLITS * c.num_heads


def row_scratch_size(contract: DecoderBlock, config: DecoderBlockConfig) -> int:
    """The same of the program of several tokens, enough for any number of them: the sums of each product's parts of K;
    of each program, the squares that two norms are made of; logarithms, and in bfloat16 what was found for each head
    and what is activated.
    """
    c = contract
    sums = config.parts * (c.qkv_size + c.hidden_size + 2 * c.intermediate_size) + config.down_parts * c.hidden_size
    squares = 2 * config.parts * (config.num_programs // config.parts + 1)
    # Programs that share a row's keys are as many as are left when every row's key head has one.
    num_found = max(MOST_TOKENS, config.num_programs // c.num_kv_heads)
    found = num_found * (c.num_heads + c.attended_size // 2)
    return MOST_TOKENS * (sums + squares + c.intermediate_size // 2) + found


def _padded(num_tokens: int) -> int:
    """Tokens that a program is written for: a power of two, and more than one."""
    return max(2, 1 << (num_tokens - 1).bit_length())


def _check(
    contract: DecoderBlock, run: Runner, config: DecoderBlockConfig, hidden: torch.Tensor, batch: AttentionBatch
) -> None:
    num_tokens, num_rows = hidden.shape[0], batch.seq_lens.shape[0]
    most = contract.most_tokens if config.parts else 1
    if num_tokens > most:
        allowed = f"up to {most} tokens" if most > 1 else "one token"
        raise ValueError(f"{contract.name}: the program is for {allowed}, and there are {num_tokens}")
    if not has_single_tokens(batch, num_tokens):
        raise ValueError(
            f"{contract.name} is for tokens of a row each, and there are {num_tokens} in {num_rows} rows of up to "
            f"{batch.max_query_len}: compute the step in other launches"
        )
    target = target_of(run)
    if target is not None and target not in contract.targets:
        known = ", ".join(contract.targets)
        raise ValueError(f"{contract.name} has a program for {known}, and {target} is another target")
    if hidden.is_cuda and config.num_programs > _num_processors(hidden.device):
        raise ValueError(
            f"{contract.name}: {config.num_programs} programs wait for one another, and the device runs "
            f"{_num_processors(hidden.device)} at a time: tune it on this device"
        )


@functools.cache
def _num_processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _kernel_config(num_warps: int, programmatic: bool) -> KernelConfig:
    return KernelConfig(num_warps=num_warps, num_stages=1, programmatic=programmatic)


def _anywhere(integers: torch.Tensor) -> torch.Tensor:
    """Integers of the same shape that begin at no multiple of 16 bytes."""
    made = torch.empty(integers.numel() + 1, dtype=integers.dtype)
    return made[1:].view(integers.shape)
