"""How ``all_reduce_rms_norm`` is launched: few rows in one program, many by NCCL and the norm's own program."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from parhelion.ops.all_reduce_rms_norm.contract import AllReduceRmsNorm
from parhelion.ops.contract import Tensors
from parhelion.ops.fused_add_rms_norm.contract import FusedAddRmsNorm
from parhelion.ops.fused_add_rms_norm.launch import launch as launch_norm
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.inboxes import MOST_ROWS, Inboxes, inboxes
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner
from parhelion.ops.rms_norm_dynamic_per_token_quant.contract import RmsNormDynamicPerTokenQuant
from parhelion.ops.rms_norm_dynamic_per_token_quant.launch import launch as launch_quantizing_norm
from parhelion.ops.row_config import row_config


@dataclass(frozen=True)
class AllReduceConfig:
    """Attributes:
    one_shot: exchange rows inside the program; else NCCL adds them up, and the norm is a launch of its own.
    num_warps: of a program, which takes a row.
    programmatic: see ``ops/programmatic.py``.
    """

    one_shot: bool
    num_warps: int
    programmatic: bool = False


Config = AllReduceConfig


def default_config(contract: AllReduceRmsNorm, bucket: int, target: GemmTarget) -> AllReduceConfig:
    """Untuned: a row is exchanged inside the program if its elements fit into words and there are few rows."""
    norm = row_config(contract.hidden_size, bucket)
    return AllReduceConfig(_fits(contract, bucket), norm.num_warps)


def candidates(contract: AllReduceRmsNorm, bucket: int, target: GemmTarget) -> list[AllReduceConfig]:
    """What is worth trying."""
    usual = default_config(contract, bucket, target)
    if not usual.one_shot:
        return [usual]
    warps = [each for each in (usual.num_warps, usual.num_warps * 2, usual.num_warps // 2) if 1 <= each <= 32]
    return [*(replace(usual, num_warps=each) for each in warps), replace(usual, one_shot=False)]


def launch(
    contract: AllReduceRmsNorm,
    run: Runner,
    config: AllReduceConfig,
    hidden: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
) -> Tensors:
    """See ``AllReduceRmsNorm``."""
    num_tokens = hidden.shape[0]
    if config.one_shot and num_tokens <= MOST_ROWS:
        found = inboxes(hidden.device, contract.num_ranks, contract.hidden_size // 2)
        if isinstance(found, Inboxes):
            return _one_shot(contract, run, config, found, hidden, residual, weight)
    if contract.num_ranks > 1 and dist.is_initialized():
        dist.all_reduce(hidden)
    norm = KernelConfig((1,), num_warps=config.num_warps, programmatic=config.programmatic)
    alone = contract.own_part
    if isinstance(alone, FusedAddRmsNorm):
        return launch_norm(alone, run, norm, hidden, residual, weight)
    assert isinstance(alone, RmsNormDynamicPerTokenQuant)
    return launch_quantizing_norm(alone, run, norm, hidden, residual, weight)


def _one_shot(
    contract: AllReduceRmsNorm,
    run: Runner,
    config: AllReduceConfig,
    between: Inboxes,
    hidden: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
) -> Tensors:
    c = contract
    y = torch.empty_like(hidden, dtype=c.quant_dtype or c.dtype)
    scales = None if c.quant_dtype is None else torch.empty((len(y), 1), dtype=torch.float32, device=y.device)
    run(
        "all_reduce_rms_norm.all_reduce_rms_norm",
        KernelConfig(num_warps=config.num_warps, programmatic=config.programmatic),
        _in_halves(hidden),
        _in_halves(residual),
        weight.view(2, -1),
        _in_halves(y),
        None if scales is None else scales.squeeze(1),
        between.turns,
        between.addresses,
        c.epsilon,
        c.num_ranks,
        MOST_ROWS,
        config.programmatic,
    )
    return (y, residual) if scales is None else (y, scales, residual)


def _in_halves(rows: torch.Tensor) -> torch.Tensor:
    return rows.view(rows.shape[0], 2, -1)


def _fits(contract: AllReduceRmsNorm, bucket: int) -> bool:
    return bucket <= MOST_ROWS and contract.dtype.itemsize == 2 and contract.hidden_size % 2 == 0
