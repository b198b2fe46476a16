"""How ``decoder_block`` is launched: one program a processor, all of them at once, as they wait for one another."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch

from parhelion.ops.arrival_counters import arrival_counters
from parhelion.ops.contract import Tensors
from parhelion.ops.decoder_block.candidates import worth_trying
from parhelion.ops.decoder_block.config import MOST_SPLITS, DecoderBlockConfig, untuned
from parhelion.ops.decoder_block.contract import DecoderBlock
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.inputs import empty_inputs
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner, target_of
from parhelion.ops.paged_attention.batch import AttentionBatch

NUM_COUNTERS = 8
"""Arrivals that programs count, zeros between launches."""

Config = DecoderBlockConfig


def default_config(contract: DecoderBlock, bucket: int, target: GemmTarget) -> DecoderBlockConfig:
    """Untuned."""
    return untuned(contract, target)


def candidates(contract: DecoderBlock, bucket: int, target: GemmTarget) -> list[DecoderBlockConfig]:
    """What is worth trying; nothing but for one token and where the program runs."""
    if bucket > contract.most_tokens or target.name not in contract.targets:
        return []
    return worth_trying(untuned(contract, target), target.num_processors)


def build_inputs(contract: DecoderBlock, bucket: int) -> list[tuple[Any, ...]]:
    """A step of one token, its integers at any address: they are views of the engine's buffer."""
    hidden, residual, positions, slots, kv_cache, batch, *weights = empty_inputs(contract, 1)
    assert isinstance(batch, AttentionBatch)
    own = replace(batch, block_table=_anywhere(batch.block_table), seq_lens=_anywhere(batch.seq_lens))
    return [(hidden, residual, _anywhere(positions), _anywhere(slots), kv_cache, own, *weights)]


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
    """See ``DecoderBlock``.

    Raises:
        ValueError: there is more than one token or row, there is no program for what ``run`` launches on, or not all
            programs would run at once.
    """
    c = contract
    new_hidden, new_residual = torch.empty_like(hidden), torch.empty_like(residual)
    if hidden.shape[0] == 0:
        return new_hidden, new_residual, kv_cache
    _check(c, run, config, hidden, batch)
    of_qkv, of_attention, of_out, of_gate_up, of_down = c.weights_by_part(weights)
    cos_sin, q_weight, k_weight = of_attention if c.head_epsilon is not None else (*of_attention, None, None)
    run(
        "decoder_block.decoder_block",
        _kernel_config(config.programmatic),
        hidden,
        residual,
        positions,
        slot_mapping,
        kv_cache,
        batch.block_table,
        batch.seq_lens,
        *of_qkv,
        cos_sin,
        q_weight,
        k_weight,
        *of_out,
        *of_gate_up,
        *of_down,
        new_hidden,
        new_residual,
        hidden.new_empty(scratch_size(c), dtype=torch.float32),
        arrival_counters(hidden.device, NUM_COUNTERS),
        c.epsilon,
        0.0 if c.head_epsilon is None else c.head_epsilon,
        c.scale,
        c.hidden_size,
        c.num_heads,
        c.num_kv_heads,
        c.head_dim,
        c.intermediate_size,
        c.block_size,
        config.num_programs,
        config.tile_k,
        config.ring,
        config.in_flight,
        config.keys_a_program,
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


def _check(
    contract: DecoderBlock, run: Runner, config: DecoderBlockConfig, hidden: torch.Tensor, batch: AttentionBatch
) -> None:
    num_tokens, num_rows = hidden.shape[0], batch.seq_lens.shape[0]
    if (num_tokens, num_rows) != (1, 1):
        raise ValueError(f"{contract.name} is for one token of one row, and there are {num_tokens} of {num_rows}")
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
def _kernel_config(programmatic: bool) -> KernelConfig:
    return KernelConfig(num_warps=4, num_stages=1, programmatic=programmatic)


def _anywhere(integers: torch.Tensor) -> torch.Tensor:
    """Integers of the same shape that begin at no multiple of 16 bytes."""
    made = torch.empty(integers.numel() + 1, dtype=integers.dtype)
    return made[1:].view(integers.shape)
