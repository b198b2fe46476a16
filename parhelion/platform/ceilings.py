"""What this device can do at most, measured: bytes a second of a copy, FLOPs a second of large matrix products.

A floor is work over a ceiling. The ceilings are the best of several runs, so that nothing is ever faster than its floor
by luck; a stream that only reads may still be a few percent faster than a copy.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_ROUNDS = 10

_ENOUGH_S = 0.2
"""What runs of one kind may take together before another one is begun."""

_EMULATED_S = 5e-4
"""A small product, of a sixteenth of the size, that takes as long is made one number after the other, and a large one,
4096 times as much work, would take seconds each time. One that deserves the name takes some 20 microseconds.
"""


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of one device.

    Attributes:
        device: what it calls itself.
        bandwidth: bytes a second, read and written bytes added.
        float32, bfloat16, float8, int8: FLOPs (or integer operations) a second of a matrix product with such operands;
            None if the device or this torch has no such product, or only emulates it.
    """

    device: str
    bandwidth: float
    float32: float | None
    bfloat16: float | None
    float8: float | None
    int8: float | None

    def floor_s(self, num_bytes: int, flops: int, unit: str) -> float:
        """Seconds that this device needs at least for so many bytes and FLOPs of a unit; the two overlap."""
        rate: float | None = getattr(self, unit)
        return max(num_bytes / self.bandwidth, flops / rate if rate else 0.0)


@functools.cache
def measure_ceilings(device: torch.device) -> Ceilings:
    """The device's limits, measured at the first call: about a second on a GPU or a CPU."""
    on_gpu = device.type == "cuda"
    size = 8192 if on_gpu else 1024
    return Ceilings(
        device=torch.cuda.get_device_name(device) if on_gpu else "cpu",
        bandwidth=_copy_bandwidth(device, (2 << 30) if on_gpu else (128 << 20)),
        float32=_rate(_float32_product, device, size // 2),
        bfloat16=_rate(_bfloat16_product, device, size),
        float8=_rate(_float8_product, device, size),
        int8=_rate(_int8_product, device, size),
    )


def l2_bytes(device: torch.device) -> int:
    """Bytes of the last cache that all processors of the device share; 0 where torch does not know."""
    if device.type != "cuda":
        return 0
    return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))


def best_seconds(work: Callable[[], object], device: torch.device, rounds: int = _ROUNDS) -> float:
    """The shortest of several runs, after one that is not counted; of fewer where they take long."""
    work()
    found = [_seconds(work, device)]
    while len(found) < rounds and sum(found) < _ENOUGH_S:
        found.append(_seconds(work, device))
    return min(found)


def _copy_bandwidth(device: torch.device, num_bytes: int) -> float:
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * num_bytes / best_seconds(lambda: target.copy_(source), device)


Product = Callable[[torch.device, int], Callable[[], object]]


def _rate(product: Product, device: torch.device, size: int) -> float | None:
    """FLOPs a second of a square product, or None where there is none that deserves the name."""
    try:
        if best_seconds(product(device, size // 16), device, rounds=3) > _EMULATED_S:
            return None
        return 2 * size**3 / best_seconds(product(device, size), device)
    except (RuntimeError, ValueError, NotImplementedError, AttributeError):
        return None


def _float32_product(device: torch.device, size: int) -> Callable[[], object]:
    # On a GPU this is the rate of the plain arithmetic units: torch uses no TF32 unless it is told to.
    a = torch.randn(size, size, device=device)
    return lambda: a @ a


def _bfloat16_product(device: torch.device, size: int) -> Callable[[], object]:
    a = torch.randn(size, size, device=device).bfloat16()
    return lambda: a @ a.t()


def _float8_product(device: torch.device, size: int) -> Callable[[], object]:
    a = torch.randn(size, size, device=device).to(torch.float8_e4m3fn)
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(a, a.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)


def _int8_product(device: torch.device, size: int) -> Callable[[], object]:
    a = torch.randint(-128, 128, (size, size), device=device, dtype=torch.int8)
    return lambda: torch._int_mm(a, a.t())


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
