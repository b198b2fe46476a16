"""``silu_and_mul``: the gated activation of SwiGLU (Shazeer, 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

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


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """[..., 2 * d] to [..., d]: silu of the first half times the second half. May overwrite x."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate, inplace=True).mul_(up)


__all__ = ["OP", "SiluAndMul", "silu_and_mul"]
