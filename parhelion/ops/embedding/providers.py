"""What others offer for ``embedding``."""

from __future__ import annotations

import torch.nn.functional as F

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.provider import BaseProvider


class TorchEmbedding(BaseProvider):
    """``torch.nn.functional.embedding``."""

    name = "torch"

    def launcher(self, contract: Contract) -> Launcher:
        return F.embedding
