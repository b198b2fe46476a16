"""What others offer for ``top_k_top_p_sampling``."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.provider import BaseProvider
from parhelion.ops.top_k_top_p_sampling.contract import drawn_above, first_largest, least_kept, over_temperature


class TorchSampling(BaseProvider):
    """ATen's sort and running sums, in float32. Nothing goes to the host, so a CUDA graph may capture it."""

    name = "torch"

    def launcher(self, contract: Contract) -> Launcher:
        def launch(
            logits: torch.Tensor,
            temperature: torch.Tensor,
            top_k: torch.Tensor,
            top_p: torch.Tensor,
            min_p: torch.Tensor,
            uniform: torch.Tensor,
        ) -> torch.Tensor:
            scaled = over_temperature(logits, temperature)
            bound = least_kept(scaled, top_k, top_p, min_p, torch.float32)
            return torch.where(
                temperature == 0, first_largest(logits), drawn_above(scaled, bound, uniform, torch.float32)
            )

        return launch
