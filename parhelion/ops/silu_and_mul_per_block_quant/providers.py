"""What others offer for ``silu_and_mul_per_block_quant``."""

from __future__ import annotations

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.quantize import FP8
from parhelion.ops.silu_and_mul_per_block_quant.contract import SiluAndMulPerBlockQuant
from parhelion.ops.vendor_provider import VllmProvider, vllm_ops


class VllmSiluAndMulPerBlockQuant(VllmProvider):
    """``_C.silu_and_mul_per_block_quant``."""

    def refuses(self, contract: Contract) -> str | None:
        assert isinstance(contract, SiluAndMulPerBlockQuant)
        if contract.scale_format != "float32":
            return f"its scales are plain float32, not {contract.scale_format}"
        return None if contract.group_size in (64, 128) else f"its groups are 64 or 128 long, not {contract.group_size}"

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, SiluAndMulPerBlockQuant)
        function, group_size = vllm_ops().silu_and_mul_per_block_quant, contract.group_size
        return lambda x: function(x, group_size, FP8)
