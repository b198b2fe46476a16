"""What others offer for ``rms_norm_dynamic_per_token_quant``."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Contract, Launcher, Tensors
from parhelion.ops.rms_norm_dynamic_per_token_quant.contract import RmsNormDynamicPerTokenQuant
from parhelion.ops.vendor_provider import VllmProvider, vllm_ops


class VllmRmsNormDynamicPerTokenQuant(VllmProvider):
    """``_C.rms_norm_dynamic_per_token_quant``; it rounds the normed row to ``dtype`` before it quantizes."""

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, RmsNormDynamicPerTokenQuant)
        function = vllm_ops().rms_norm_dynamic_per_token_quant
        epsilon, quant_dtype = contract.epsilon, contract.quant_dtype

        def launch(x: torch.Tensor, *residual_and_weight: torch.Tensor) -> Tensors:
            *residual, weight = residual_and_weight
            quantized = function(x, weight, epsilon, quant_dtype, None, residual[0] if residual else None)
            return (*quantized, *residual)

        return launch
