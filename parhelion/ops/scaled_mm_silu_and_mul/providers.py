"""What others offer for ``scaled_mm_silu_and_mul``: nothing in one piece, so one after the other."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Contract, Launcher, Tensors
from parhelion.ops.provider import BaseProvider
from parhelion.ops.scaled_mm.contract import ScaledMm
from parhelion.ops.scaled_mm.providers import TorchScaledMm
from parhelion.ops.scaled_mm_silu_and_mul.contract import ScaledMmSiluAndMul, column_amax
from parhelion.ops.tile_math import silu_times


class TorchScaledMmSiluAndMul(BaseProvider):
    """ATen's product, which rounds gate and up to ``dtype``, and its activation."""

    name = "torch"

    def __init__(self) -> None:
        self._product = TorchScaledMm()

    def why_not(self, device: torch.device) -> str | None:
        return self._product.why_not(device)

    def refuses(self, contract: Contract) -> str | None:
        return self._product.refuses(_both(contract))

    def launcher(self, contract: Contract) -> Launcher:
        product = self._product.launcher(_both(contract))

        def launch(
            codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor
        ) -> Tensors:
            both = product(codes, scales, weight, weight_scales)
            activated = silu_times(*both.chunk(2, 1)).to(both.dtype)
            return activated, column_amax(activated)

        return launch


def _both(contract: Contract) -> ScaledMm:
    """Gate and up, as one product."""
    assert isinstance(contract, ScaledMmSiluAndMul)
    c = contract
    return ScaledMm(c.in_features, 2 * c.intermediate_size, c.quant_dtype, c.dtype)
