"""The devices that programs are built for, and the limits that a compiler without the device does not check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from parhelion.errors import ConfigError

_KIB = 1024


@dataclass(frozen=True)
class Target:
    """A kind of GPU, known well enough to build for it where there is none.

    Attributes:
        name: as compilers spell it: ``sm_90``, ``gfx942``.
        devices: what people call them.
        backend: Triton's name of the toolchain.
        warp_size: threads that run in step.
        max_shared_bytes: shared memory (LDS) that one program may have. NVIDIA: CUDA C++ Programming Guide, table of
            technical specifications; AMD: the CDNA 3 and CDNA 4 instruction set manuals.
    """

    name: str
    devices: str
    backend: Literal["cuda", "hip"]
    warp_size: int
    max_shared_bytes: int

    @property
    def arch(self) -> int | str:
        """The architecture as Triton's ``GPUTarget`` takes it: 90, "gfx942"."""
        return int(self.name.removeprefix("sm_")) if self.backend == "cuda" else self.name


MAX_THREADS = 1024
"""Threads that one program may have, on all of these."""

MAX_TENSOR_MEMORY_COLUMNS = 512
"""Columns of Blackwell's tensor memory that one program may have (PTX ISA, ``tcgen05.alloc``)."""

TARGETS = (
    Target("sm_80", "A100", "cuda", 32, 163 * _KIB),
    Target("sm_89", "L4, L40S, RTX 4090", "cuda", 32, 99 * _KIB),
    Target("sm_90", "H100, H200", "cuda", 32, 227 * _KIB),
    Target("sm_100", "B200", "cuda", 32, 227 * _KIB),
    Target("sm_120", "RTX 5090, RTX PRO 6000", "cuda", 32, 99 * _KIB),
    Target("gfx942", "MI300X, MI325X", "hip", 64, 64 * _KIB),
    Target("gfx950", "MI350X, MI355X", "hip", 64, 160 * _KIB),
)


def target(name: str) -> Target:
    """A target by name.

    Raises:
        ConfigError: there is none; the message lists those that exist.
    """
    for each in TARGETS:
        if each.name == name:
            return each
    raise ConfigError(f"there is no target {name!r}; the targets are {', '.join(each.name for each in TARGETS)}")
