"""The config of one tile program: what its compiler is told, in plain values that a pack can store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PidType = Literal["flat", "persistent_blocked", "persistent_interleaved"]


@dataclass(frozen=True)
class KernelConfig:
    """The fields of a ``helion.Config`` that tile programs here use.

    Attributes:
        block_sizes: of the loops whose tiles the program leaves open, in order.
        loop_orders: for each loop over several dimensions, which of them runs fastest last.
        l2_groupings: how many tiles along the first dimension of a grid are made before the next along the second.
        num_warps, num_stages: Triton's.
        pid_type: one program a tile, or as many programs as processors.
        programmatic: started before the kernel before it has ended; see ``ops/programmatic.py``. Only for targets that
            have it.
        others: further fields, which Helion's own search may have set, as names with JSON values.
    """

    block_sizes: tuple[int, ...] = ()
    loop_orders: tuple[tuple[int, ...], ...] = ()
    l2_groupings: tuple[int, ...] = ()
    num_warps: int = 4
    num_stages: int = 1
    pid_type: PidType = "flat"
    programmatic: bool = False
    others: tuple[tuple[str, str], ...] = ()
