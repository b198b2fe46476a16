"""``argmax``: the likeliest token."""

import torch

from parhelion.ops.argmax.contract import Argmax
from parhelion.ops.argmax.providers import TorchArgmax
from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op

OP = Op(
    Argmax,
    (ReferenceProvider(), InductorProvider(), HelionProvider(), TorchArgmax()),
    examples=(Argmax(1000), Argmax(49152, torch.bfloat16), Argmax(151936), Argmax(151936, torch.bfloat16)),
)

__all__ = ["OP", "Argmax"]
