"""``silu_and_mul``: the gated activation of SwiGLU (Shazeer, 2020)."""

import torch

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op
from parhelion.ops.silu_and_mul.contract import SiluAndMul
from parhelion.ops.silu_and_mul.providers import FlashInferSiluAndMul, TorchSiluAndMul, VllmSiluAndMul

OP = Op(
    SiluAndMul,
    (
        ReferenceProvider(),
        InductorProvider(),
        HelionProvider(),
        TorchSiluAndMul(),
        FlashInferSiluAndMul(),
        VllmSiluAndMul(),
    ),
    examples=(SiluAndMul(64), SiluAndMul(1536, torch.float32), SiluAndMul(2047), SiluAndMul(12288)),
)

__all__ = ["OP", "SiluAndMul"]
