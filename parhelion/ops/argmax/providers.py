"""What others offer for ``argmax``."""

from __future__ import annotations

import torch

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.provider import BaseProvider


class TorchArgmax(BaseProvider):
    """``torch.argmax``: in practice the first of equal elements, which it does not promise."""

    name = "torch"

    def launcher(self, contract: Contract) -> Launcher:
        def launch(logits: torch.Tensor) -> torch.Tensor:
            return logits.argmax(-1)

        return launch
