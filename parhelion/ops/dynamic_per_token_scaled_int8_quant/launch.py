"""How ``dynamic_per_token_scaled_int8_quant`` is launched: as FP8's, whose outputs say which type the codes have."""

from parhelion.ops.dynamic_per_token_scaled_fp8_quant.launch import Config, candidates, default_config, launch

__all__ = ["Config", "candidates", "default_config", "launch"]
