"""How ``rope_and_cache`` is launched."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.heads_config import heads_candidates, heads_config, in_halves
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner
from parhelion.ops.rope_and_cache.contract import RopeAndCache

Config = KernelConfig


def default_config(contract: RopeAndCache, bucket: int, target: GemmTarget) -> KernelConfig:
    """Untuned, the same on all targets."""
    return heads_config(contract.num_heads + 2 * contract.num_kv_heads, contract.head_dim, bucket)


def candidates(contract: RopeAndCache, bucket: int, target: GemmTarget) -> list[KernelConfig]:
    """What is worth trying."""
    return heads_candidates(contract.num_heads + 2 * contract.num_kv_heads, contract.head_dim, bucket)


def launch(
    contract: RopeAndCache,
    run: Runner,
    config: KernelConfig,
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache: torch.Tensor,
    cos_sin: torch.Tensor,
) -> Tensors:
    """See ``RopeAndCache``."""
    c = contract
    query = qkv.new_empty((qkv.shape[0], c.num_heads * c.head_dim))
    run(
        "rope_and_cache.rope_and_cache",
        config,
        in_halves(qkv, c.head_dim),
        positions,
        slot_mapping,
        kv_cache.view(-1, 2, c.head_dim // 2),
        cos_sin.view(-1, 2, c.head_dim // 2),
        in_halves(query, c.head_dim),
        c.num_heads,
        c.num_kv_heads,
        config.programmatic,
    )
    return query, kv_cache
