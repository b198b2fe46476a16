"""The GEMM's algorithms as configs, with tiles small enough that small problems have several of them."""

from __future__ import annotations

import functools

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.helion_provider import interpret
from parhelion.ops.launching import launch_module

VARIANTS = {
    "standard": GemmConfig(16, 32, 64),
    "swapped": GemmConfig(16, 64, 64, swap_ab=True),
    "split_2": GemmConfig(16, 64, 32, split_k=2),
    "split_3": GemmConfig(32, 32, 32, split_k=3),
    "split_4_swapped": GemmConfig(16, 64, 32, swap_ab=True, split_k=4),
    "split_3_swapped": GemmConfig(32, 32, 64, swap_ab=True, split_k=3),
    "persistent": GemmConfig(32, 64, 64, pid_type="persistent_blocked", group_m=4),
}


def launcher(contract: Contract, variant: str) -> Launcher:
    """The contract's tile program under an algorithm of our choice, interpreted."""
    return functools.partial(launch_module(contract.name).launch, contract, interpret, VARIANTS[variant])
