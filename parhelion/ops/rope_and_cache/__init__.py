"""``rope_and_cache``: rotary position embedding and the write to the KV cache."""

import torch

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import ReferenceProvider
from parhelion.ops.registry import Op
from parhelion.ops.rope_and_cache.contract import RopeAndCache
from parhelion.ops.rope_and_cache.providers import (
    InductorInPlace,
    TorchRopeAndCache,
    VllmRopeAndCache,
    update_launcher,
)

OP = Op(
    RopeAndCache,
    (
        ReferenceProvider(),
        InductorInPlace(update_launcher),
        HelionProvider(),
        TorchRopeAndCache(),
        VllmRopeAndCache(),
    ),
    examples=(
        RopeAndCache(3, 1, 64, 16, 128),
        RopeAndCache(9, 3, 64, 16, 2048, torch.float32),
        RopeAndCache(28, 4, 128, 16, 4096),
        RopeAndCache(32, 8, 128, 16, 4096),
    ),
)

__all__ = ["OP", "RopeAndCache"]
