"""What others offer for ``per_token_group_fp8_quant``."""

from __future__ import annotations

import importlib

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.per_token_group_fp8_quant.contract import PerTokenGroupFp8Quant
from parhelion.ops.vendor_provider import VllmProvider

VLLM_MODULE = "vllm.model_executor.layers.quantization.utils.fp8_utils"


class VllmPerTokenGroupFp8Quant(VllmProvider):
    """``_C.per_token_group_fp8_quant``, through the function that knows its arguments in each version of vLLM."""

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, PerTokenGroupFp8Quant)
        function = importlib.import_module(VLLM_MODULE).per_token_group_quant_fp8
        group_size, use_ue8m0 = contract.group_size, contract.scale_format == "ue8m0"
        return lambda x: function(x, group_size, use_ue8m0=use_ue8m0)
