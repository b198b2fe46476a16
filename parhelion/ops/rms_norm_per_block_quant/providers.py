"""What others offer for ``rms_norm_per_block_quant``."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Contract, Launcher, Tensors
from parhelion.ops.quantize import FP8
from parhelion.ops.rms_norm_per_block_quant.contract import RmsNormPerBlockQuant
from parhelion.ops.vendor_provider import VllmProvider, vllm_ops


class VllmRmsNormPerBlockQuant(VllmProvider):
    """``_C.rms_norm_per_block_quant``; it rounds the normed row to ``dtype`` before it quantizes."""

    def refuses(self, contract: Contract) -> str | None:
        assert isinstance(contract, RmsNormPerBlockQuant)
        if contract.scale_format != "float32":
            return f"its scales are plain float32, not {contract.scale_format}"
        return None if contract.group_size in (64, 128) else f"its groups are 64 or 128 long, not {contract.group_size}"

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, RmsNormPerBlockQuant)
        function = vllm_ops().rms_norm_per_block_quant
        epsilon, group = contract.epsilon, [1, contract.group_size]

        def launch(x: torch.Tensor, *residual_and_weight: torch.Tensor) -> Tensors:
            *residual, weight = residual_and_weight
            quantized = function(x, weight, epsilon, FP8, group, None, residual[0] if residual else None)
            return (*quantized, *residual)

        return launch
