"""What others offer for ``scaled_mm_of_activations``: nothing in one piece, so one after the other."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.provider import BaseProvider
from parhelion.ops.quantize import codes_of, scales_of
from parhelion.ops.scaled_mm.contract import ScaledMm
from parhelion.ops.scaled_mm.providers import TorchScaledMm
from parhelion.ops.scaled_mm_of_activations.contract import ScaledMmOfActivations


class TorchScaledMmOfActivations(BaseProvider):
    """The formulas of quantization, and ATen's product."""

    name = "torch"

    def __init__(self) -> None:
        self._product = TorchScaledMm()

    def why_not(self, device: torch.device) -> str | None:
        return self._product.why_not(device)

    def refuses(self, contract: Contract) -> str | None:
        return self._product.refuses(_of_codes(contract))

    def launcher(self, contract: Contract) -> Launcher:
        of_codes = _of_codes(contract)
        product = self._product.launcher(of_codes)

        def launch(
            x: torch.Tensor, amax: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor
        ) -> torch.Tensor:
            scales = scales_of(amax.amax(0).unsqueeze(1), of_codes.quant_dtype)
            codes = codes_of(x.float(), 1.0 / scales, of_codes.quant_dtype)
            y: torch.Tensor = product(codes, scales, weight, weight_scales)
            return y

        return launch


def _of_codes(contract: Contract) -> ScaledMm:
    """The product alone."""
    assert isinstance(contract, ScaledMmOfActivations)
    c = contract
    return ScaledMm(c.in_features, c.out_features, c.quant_dtype, c.dtype)
