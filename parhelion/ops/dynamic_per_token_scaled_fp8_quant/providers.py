"""What others offer for ``dynamic_per_token_scaled_fp8_quant``."""

from __future__ import annotations

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.vendor_provider import VllmProvider, vllm_ops


class VllmDynamicPerTokenScaledFp8Quant(VllmProvider):
    """``_C.dynamic_per_token_scaled_fp8_quant``; it divides by the scale, where others multiply by its inverse."""

    def launcher(self, contract: Contract) -> Launcher:
        function = vllm_ops().scaled_fp8_quant
        return lambda x: function(x, use_per_token_if_dynamic=True)
