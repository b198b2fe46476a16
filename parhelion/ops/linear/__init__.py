"""``linear``: activations [M, K] by a weight [N, K] to [M, N]."""

import torch

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.linear.contract import Linear
from parhelion.ops.linear.cpu import FbgemmHalfLinear, OneDnnLinear, TorchLinear
from parhelion.ops.linear.cutlass import CutlassLinear
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op

OP = Op(
    Linear,
    (
        ReferenceProvider(),
        InductorProvider(),
        HelionProvider(),
        TorchLinear(),
        CutlassLinear(),
        OneDnnLinear(),
        FbgemmHalfLinear(),
    ),
    examples=(
        Linear(64, 96),
        Linear(200, 72, torch.float32, bias=True),
        Linear(576, 960),
        Linear(2048, 4096),
        Linear(4096, 6144),
    ),
)

__all__ = ["OP", "Linear"]
