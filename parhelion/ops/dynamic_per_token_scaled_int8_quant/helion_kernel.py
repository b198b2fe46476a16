"""``dynamic_per_token_scaled_int8_quant`` as a tile program: FP8's, whose outputs say which type the codes have."""

from parhelion.ops.dynamic_per_token_scaled_fp8_quant.helion_kernel import launch

__all__ = ["launch"]
