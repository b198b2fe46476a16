"""What others offer for ``dynamic_per_token_scaled_int8_quant``."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Contract, Launcher, Tensors
from parhelion.ops.vendor_provider import VllmProvider, vllm_ops


class VllmDynamicPerTokenScaledInt8Quant(VllmProvider):
    """``_C.dynamic_scaled_int8_quant``, symmetric (without zero points)."""

    def launcher(self, contract: Contract) -> Launcher:
        function = vllm_ops().scaled_int8_quant

        def launch(x: torch.Tensor) -> Tensors:
            codes, scales, _ = function(x)
            return codes, scales

        return launch
