"""How ``fused_qk_norm_rope`` is launched."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.fused_qk_norm_rope.contract import FusedQkNormRope
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.heads_config import heads_candidates, heads_config, in_halves
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner

Config = KernelConfig


def default_config(contract: FusedQkNormRope, bucket: int, target: GemmTarget) -> KernelConfig:
    """Untuned, the same on all targets."""
    return heads_config(contract.num_heads + 2 * contract.num_kv_heads, contract.head_dim, bucket)


def candidates(contract: FusedQkNormRope, bucket: int, target: GemmTarget) -> list[KernelConfig]:
    """What is worth trying."""
    return heads_candidates(contract.num_heads + 2 * contract.num_kv_heads, contract.head_dim, bucket)


def launch(
    contract: FusedQkNormRope,
    run: Runner,
    config: KernelConfig,
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache: torch.Tensor,
    cos_sin: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
) -> Tensors:
    """See ``FusedQkNormRope``."""
    c = contract
    query = qkv.new_empty((qkv.shape[0], c.num_heads * c.head_dim))
    run(
        "fused_qk_norm_rope.fused_qk_norm_rope",
        config,
        in_halves(qkv, c.head_dim),
        positions,
        slot_mapping,
        kv_cache.view(-1, 2, c.head_dim // 2),
        cos_sin.view(-1, 2, c.head_dim // 2),
        q_weight.view(2, -1),
        k_weight.view(2, -1),
        in_halves(query, c.head_dim),
        c.epsilon,
        c.num_heads,
        c.num_kv_heads,
        config.programmatic,
    )
    return query, kv_cache
