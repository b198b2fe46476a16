"""Which providers to try where neither the user nor a pack says: a plain table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

ON_CPU: Mapping[str, tuple[str, ...]] = MappingProxyType({"linear": ("onednn", "torch")})
"""Providers in the order of their worth on a CPU, where that is not just ``torch`` and then ``reference``."""

ON_GPU: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "linear": ("torch", "helion"),
        "scaled_mm": ("torch", "helion"),
        "embedding": ("torch", "helion"),
        "argmax": ("torch", "helion"),
        "step_inputs": (),
        "decoder_block": (),
    }
)
"""The same on a GPU, where that is not just ``helion``, ``torch`` and then ``reference``."""


COMPILING = ("helion", "inductor", "cutlass")
"""Providers that compile at their first calls, unless a pack brings their binaries."""


def preferred(op_name: str, device: torch.device) -> tuple[str, ...]:
    """Names of providers to try in turn; the reference ends every list."""
    if device.type == "cpu":
        return (*ON_CPU.get(op_name, ("torch",)), "reference")
    return (*ON_GPU.get(op_name, ("helion", "torch")), "reference")
