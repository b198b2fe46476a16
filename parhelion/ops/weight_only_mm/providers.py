"""What others offer for ``weight_only_mm``."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.provider import BaseProvider
from parhelion.ops.weight_only_mm.contract import WeightOnlyMm


class TorchWeightOnlyMm(BaseProvider):
    """ATen: the weight widened to a temporary tensor, then ``linear``. Moves the weight's bytes five times."""

    name = "torch"

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, WeightOnlyMm)
        dtype = contract.dtype

        def launch(
            x: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor, bias: torch.Tensor | None = None
        ) -> torch.Tensor:
            # Scales before the product: after it, a float16 sum could overflow.
            return F.linear(x, (weight.to(torch.float32) * weight_scales).to(dtype), bias)

        return launch
