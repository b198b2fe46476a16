"""How ``step_inputs`` is launched."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner, build_sizes
from parhelion.ops.step_inputs.contract import StepInputs

Config = KernelConfig


def default_config(contract: StepInputs, bucket: int, target: GemmTarget) -> KernelConfig:
    """Untuned, the same on all targets."""
    return _config(512)


def candidates(contract: StepInputs, bucket: int, target: GemmTarget) -> list[KernelConfig]:
    """What is worth trying."""
    return [_config(512), _config(256), _config(1024)]


def build_inputs(contract: StepInputs, bucket: int) -> list[Tensors]:
    """The integers are views of the engine's buffer, at any address; sizes are odd where they can."""

    def integers(size: int) -> torch.Tensor:
        return torch.empty(size + 1, dtype=torch.int32)[1:]

    return [
        (
            *(integers(num_tokens) for _ in range(4)),
            torch.empty((3, 67), dtype=torch.int32),
            torch.empty((3, 5), dtype=torch.int32),
        )
        for num_tokens in build_sizes(bucket)
    ]


def launch(
    contract: StepInputs,
    run: Runner,
    config: KernelConfig,
    row_slot: torch.Tensor,
    token_row: torch.Tensor,
    token_position: torch.Tensor,
    sample_position: torch.Tensor,
    tokens: torch.Tensor,
    block_table: torch.Tensor,
) -> Tensors:
    """See ``StepInputs``."""
    num_rows = row_slot.shape[0]
    token_ids, positions, slot_mapping, sample_index = (
        row_slot.new_empty((num_rows,), dtype=torch.int64) for _ in range(4)
    )
    row_blocks = block_table.new_empty((num_rows, block_table.shape[1]))
    run(
        "step_inputs.step_inputs",
        config,
        row_slot,
        token_row,
        token_position,
        sample_position,
        tokens,
        block_table,
        token_ids,
        positions,
        slot_mapping,
        row_blocks,
        sample_index,
        contract.block_size,
        config.programmatic,
    )
    return token_ids, positions, slot_mapping, row_blocks, sample_index


def _config(blocks: int) -> KernelConfig:
    """``blocks`` of a row for a program; neighbouring programs take neighbouring ones."""
    return KernelConfig((blocks,), ((1, 0),), num_warps=max(1, blocks // 256))
