"""What a GEMM's tiles depend on in a GPU."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

_KIB = 1024


@dataclass(frozen=True)
class GemmTarget:
    """A kind of GPU as far as configs care.

    Attributes:
        num_processors: streaming multiprocessors or compute units of the usual part; a few more or less do not matter.
        shared_bytes: shared memory (LDS) that one program may have.
        wide_mma: its matrix unit takes the left operand in 64 rows (wgmma, tcgen05): a small M is better on the right.
        float8: it multiplies ``float8_e4m3fn``; elsewhere codes are widened in registers first.
        is_amd: it wants short pipelines.
        programmatic: kernels may start before their predecessors have ended; see ``ops/programmatic.py``.
    """

    name: str
    num_processors: int
    shared_bytes: int
    wide_mma: bool = False
    float8: bool = True
    is_amd: bool = False
    programmatic: bool = False


_TARGETS = {
    target.name: target
    for target in (
        GemmTarget("sm_80", 108, 163 * _KIB, float8=False),
        GemmTarget("sm_89", 142, 99 * _KIB),
        GemmTarget("sm_90", 132, 227 * _KIB, wide_mma=True, programmatic=True),
        GemmTarget("sm_100", 148, 227 * _KIB, wide_mma=True, programmatic=True),
        GemmTarget("sm_103", 160, 227 * _KIB, wide_mma=True, programmatic=True),
        GemmTarget("sm_120", 170, 99 * _KIB, programmatic=True),
        # gfx942's own FP8 has another bias (float8_e4m3fnuz).
        GemmTarget("gfx942", 304, 64 * _KIB, float8=False, is_amd=True),
        GemmTarget("gfx950", 256, 160 * _KIB, is_amd=True),
    )
}


def gemm_target(name: str) -> GemmTarget:
    """A target by the name that compilers use; of an unknown one only what every GPU of its kind can do is assumed."""
    known = _TARGETS.get(name)
    if known is not None:
        return known
    if name.startswith("gfx"):
        return GemmTarget(name, 64, 64 * _KIB, float8=False, is_amd=True)
    return GemmTarget(name, 64, 99 * _KIB, float8=int(name.removeprefix("sm_")) >= 89)


def target_of_device(device: torch.device) -> GemmTarget:
    """The target that a device is; a CPU, where programs are interpreted, stands in for an H100."""
    return gemm_target("sm_90") if device.type != "cuda" else _of_gpu(device.index or 0)


@functools.lru_cache
def _of_gpu(index: int) -> GemmTarget:
    if torch.version.hip is not None:
        return gemm_target(torch.cuda.get_device_properties(index).gcnArchName.split(":")[0])
    major, minor = torch.cuda.get_device_capability(index)
    return gemm_target(f"sm_{major}{minor}")
