"""What others offer for ``fused_rope_attention``: nothing in one piece, so their two halves one after the other."""

from __future__ import annotations

from typing import Any

import torch

from parhelion.ops.contract import Contract, Launcher, Tensors
from parhelion.ops.fused_qk_norm_rope.providers import TorchQkNormRope
from parhelion.ops.fused_rope_attention.contract import FusedRopeAttention
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.paged_attention.providers import FlashAttention3, TorchPagedAttention, VllmFlashAttention
from parhelion.ops.provider import BaseProvider, Provider
from parhelion.ops.rope_and_cache.providers import TorchRopeAndCache


class TwoHalves(BaseProvider):
    """ATen's norms and rotation, and someone's attention.

    Args:
        attention: whose.
    """

    def __init__(self, attention: Provider) -> None:
        self.name = attention.name
        self._attention = attention

    def why_not(self, device: torch.device) -> str | None:
        return self._attention.why_not(device)

    def refuses(self, contract: Contract) -> str | None:
        assert isinstance(contract, FusedRopeAttention)
        return self._attention.refuses(contract.attention)

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, FusedRopeAttention)
        first: Any = TorchRopeAndCache() if contract.epsilon is None else TorchQkNormRope()
        rope = first.launcher(contract.rope)
        attention = self._attention.launcher(contract.attention)

        def launch(
            qkv: torch.Tensor,
            positions: torch.Tensor,
            slot_mapping: torch.Tensor,
            kv_cache: torch.Tensor,
            batch: AttentionBatch,
            *weights: torch.Tensor,
        ) -> Tensors:
            query, kv_cache = rope(qkv, positions, slot_mapping, kv_cache, *weights)
            return *contract.quantized(attention(query, kv_cache, batch)), kv_cache

        return launch


TORCH, FLASH_ATTENTION, VLLM = (
    TwoHalves(each) for each in (TorchPagedAttention(), FlashAttention3(), VllmFlashAttention())
)
