"""``all_reduce_rms_norm``: the sum over the ranks, added to the residual and normalized, and quantized if asked for."""

import torch

from parhelion.ops.all_reduce_rms_norm.contract import AllReduceRmsNorm
from parhelion.ops.all_reduce_rms_norm.providers import HelionAllReduceRmsNorm, TorchDistributedAndNorm
from parhelion.ops.provider import ReferenceProvider
from parhelion.ops.quantize import FP8
from parhelion.ops.registry import Op

OP = Op(
    AllReduceRmsNorm,
    (ReferenceProvider(), TorchDistributedAndNorm(), HelionAllReduceRmsNorm()),
    examples=(
        AllReduceRmsNorm(64, 1),
        AllReduceRmsNorm(576, 1, dtype=torch.float32),
        AllReduceRmsNorm(640, 1, quant_dtype=torch.int8),
        AllReduceRmsNorm(4096, 1, quant_dtype=FP8),
        AllReduceRmsNorm(5120, 1),
    ),
)

__all__ = ["OP", "AllReduceRmsNorm"]
