"""What others offer for ``fused_qk_norm_rope``."""

from __future__ import annotations

from typing import Any

import torch

from parhelion.ops.contract import Contract, Launcher, Tensors
from parhelion.ops.fused_qk_norm_rope.contract import FusedQkNormRope
from parhelion.ops.provider import BaseProvider
from parhelion.ops.rms_norm.contract import normalized
from parhelion.ops.rms_norm.providers import torch_rms_norm
from parhelion.ops.rope_and_cache.contract import angles, rotated, split_heads, store_
from parhelion.ops.rope_and_cache.providers import TorchRopeAndCache, vllm_store
from parhelion.ops.vendor_provider import VllmProvider, vllm_ops


class TorchQkNormRope(BaseProvider):
    """ATen's norms, in place, then what ``rope_and_cache`` has of ATen's."""

    name = "torch"

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, FusedQkNormRope)
        c = contract
        norm = torch_rms_norm(c.head_dim, c.epsilon, c.dtype)
        rope = TorchRopeAndCache().launcher(c.without_norm)

        def launch(
            qkv: torch.Tensor,
            positions: torch.Tensor,
            slot_mapping: torch.Tensor,
            kv_cache: torch.Tensor,
            cos_sin: torch.Tensor,
            q_weight: torch.Tensor,
            k_weight: torch.Tensor,
        ) -> Any:
            query, key, _ = split_heads(qkv, c.num_heads, c.num_kv_heads, c.head_dim)
            query.copy_(norm(query, q_weight))
            key.copy_(norm(key, k_weight))
            return rope(qkv, positions, slot_mapping, kv_cache, cos_sin)

        return launch


def update_launcher(contract: FusedQkNormRope) -> Launcher:
    """The reference's formulas with the cache written in place."""
    c = contract

    def update(
        qkv: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        kv_cache: torch.Tensor,
        cos_sin: torch.Tensor,
        q_weight: torch.Tensor,
        k_weight: torch.Tensor,
    ) -> Tensors:
        query, key, value = split_heads(qkv, c.num_heads, c.num_kv_heads, c.head_dim)
        cos, sin = angles(cos_sin, positions, torch.float32)
        key = rotated(normalized(key.float(), k_weight.float(), c.epsilon), cos, sin).to(c.dtype)
        store_(kv_cache, slot_mapping, torch.cat((key, value), 1))
        query = rotated(normalized(query.float(), q_weight.float(), c.epsilon), cos, sin)
        return query.to(c.dtype).flatten(1), kv_cache

    return update


class VllmQkNormRope(VllmProvider):
    """vLLM's ``fused_qk_norm_rope``, in place, and ``reshape_and_cache_flash``: two launches."""

    def refuses(self, contract: Contract) -> str | None:
        assert isinstance(contract, FusedQkNormRope)
        return None if contract.head_dim in (64, 128, 256) else f"it has no kernel for head_dim {contract.head_dim}"

    def launcher(self, contract: Contract) -> Launcher:
        return lambda *inputs: self.bind(contract, *inputs[-3:])(*inputs[:-3])

    def bind(self, contract: Contract, *weights: Any) -> Launcher:
        assert isinstance(contract, FusedQkNormRope)
        c, ops = contract, vllm_ops()
        cos_sin, q_weight, k_weight = weights
        table = cos_sin.to(c.dtype)
        store = vllm_store(c.num_heads, c.num_kv_heads, c.head_dim)

        def launch(
            qkv: torch.Tensor, positions: torch.Tensor, slot_mapping: torch.Tensor, kv_cache: torch.Tensor
        ) -> Tensors:
            ops.fused_qk_norm_rope(
                qkv,
                c.num_heads,
                c.num_kv_heads,
                c.num_kv_heads,
                c.head_dim,
                c.epsilon,
                q_weight,
                k_weight,
                table,
                True,
                positions,
            )
            store(qkv, slot_mapping, kv_cache)
            return qkv[:, : c.num_heads * c.head_dim], kv_cache

        return launch
