"""What others offer for ``rope_and_cache``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from parhelion.ops.contract import Contract, Launcher, Tensors
from parhelion.ops.provider import BaseProvider, InductorProvider
from parhelion.ops.rope_and_cache.contract import RopeAndCache, angles, rotated, split_heads, store_
from parhelion.ops.rope_and_cache.cpu import rope_and_cache_launcher
from parhelion.ops.vendor_provider import VllmProvider, vllm_ops


class TorchRopeAndCache(BaseProvider):
    """Chains of ATen kernels; on a CPU in place, and without padding slots."""

    name = "torch"

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, RopeAndCache)
        c = contract
        on_cpu = rope_and_cache_launcher(c.num_heads, c.num_kv_heads, c.head_dim, c.dtype)
        on_gpu = update_launcher(c)
        return lambda *inputs: (on_gpu if inputs[0].is_cuda else on_cpu)(*inputs)


class InductorInPlace(InductorProvider):
    """The formulas through ``torch.compile``, with the cache written in place: the reference copies it whole.

    Args:
        update: makes, from a contract, the function to compile.
    """

    def __init__(self, update: Callable[[Any], Launcher]) -> None:
        self._update = update

    def function(self, contract: Contract) -> Launcher:
        return self._update(contract)


def update_launcher(contract: RopeAndCache) -> Launcher:
    """The reference's formulas with the cache written in place."""
    c = contract

    def update(
        qkv: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        kv_cache: torch.Tensor,
        cos_sin: torch.Tensor,
    ) -> Tensors:
        query, key, value = split_heads(qkv, c.num_heads, c.num_kv_heads, c.head_dim)
        cos, sin = angles(cos_sin, positions, torch.float32)
        key = rotated(key.float(), cos, sin).to(c.dtype)
        store_(kv_cache, slot_mapping, torch.cat((key, value), 1))
        return rotated(query.float(), cos, sin).to(c.dtype).flatten(1), kv_cache

    return update


class VllmRopeAndCache(VllmProvider):
    """vLLM's ``rotary_embedding``, in place, and ``reshape_and_cache_flash``; its table has the activations' dtype."""

    def launcher(self, contract: Contract) -> Launcher:
        return lambda *inputs: self.bind(contract, inputs[-1])(*inputs[:-1])

    def bind(self, contract: Contract, *weights: Any) -> Launcher:
        assert isinstance(contract, RopeAndCache)
        c, ops = contract, vllm_ops()
        table = weights[0].to(c.dtype)
        store = vllm_store(c.num_heads, c.num_kv_heads, c.head_dim)

        def launch(
            qkv: torch.Tensor, positions: torch.Tensor, slot_mapping: torch.Tensor, kv_cache: torch.Tensor
        ) -> Tensors:
            query, key, _ = qkv.split([c.num_heads * c.head_dim, *[c.num_kv_heads * c.head_dim] * 2], 1)
            ops.rotary_embedding(positions, query, key, c.head_dim, table, True)
            store(qkv, slot_mapping, kv_cache)
            return query, kv_cache

        return launch


def vllm_store(num_heads: int, num_kv_heads: int, head_dim: int) -> Callable[..., None]:
    """A function of (qkv, slot_mapping, kv_cache) that stores the key and value heads by vLLM's kernel."""
    ops = vllm_ops()

    def store(qkv: torch.Tensor, slot_mapping: torch.Tensor, kv_cache: torch.Tensor) -> None:
        _, key, value = split_heads(qkv, num_heads, num_kv_heads, head_dim)
        keys, values = kv_cache.split(num_kv_heads, 2)
        one = torch.ones((), device=qkv.device)
        ops.reshape_and_cache_flash(key, value, keys, values, slot_mapping, "auto", one, one)

    return store
