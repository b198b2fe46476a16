"""``rms_norm``: root-mean-square normalization of rows."""

import torch

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op
from parhelion.ops.rms_norm.contract import RmsNorm
from parhelion.ops.rms_norm.providers import FlashInferRmsNorm, TorchRmsNorm, VllmRmsNorm

OP = Op(
    RmsNorm,
    (ReferenceProvider(), InductorProvider(), HelionProvider(), TorchRmsNorm(), FlashInferRmsNorm(), VllmRmsNorm()),
    examples=(RmsNorm(64), RmsNorm(576, 1e-5, torch.float32), RmsNorm(2048), RmsNorm(4096)),
)

__all__ = ["OP", "RmsNorm"]
