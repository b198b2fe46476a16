"""``weight_only_mv``: few tokens, unquantized, by a weight of codes, with a norm before and an activation behind."""

import torch

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op
from parhelion.ops.weight_only_mv.contract import WeightOnlyMv

OP = Op(
    WeightOnlyMv,
    (ReferenceProvider(), InductorProvider(), HelionProvider()),
    examples=(
        WeightOnlyMv(64, 96),
        WeightOnlyMv(200, 72, torch.int8, torch.float32, 1e-6, add_residual=True),
        WeightOnlyMv(200, 72, epsilon=1e-6, gated=True),
        WeightOnlyMv(2048, 4096, epsilon=1e-6, add_residual=True),
        WeightOnlyMv(2048, 4096, epsilon=1e-6),
        WeightOnlyMv(2048, 6144, epsilon=1e-6, add_residual=True, gated=True),
        WeightOnlyMv(6144, 2048),
        WeightOnlyMv(6144, 2048, torch.int8),
    ),
)

__all__ = ["OP", "WeightOnlyMv"]
