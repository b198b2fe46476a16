"""Small Triton programs for tests of cross-compilation, as launches that were never made."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from parhelion.tuning.record import Launch


@triton.jit
def cast(source, target, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(source + index, mask=index < count)
    tl.store(target + index, value.to(target.dtype.element_ty), mask=index < count)


@triton.jit
def scale(source, target, factor, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(source + index, mask=index < count)
    tl.store(target + index, value * factor, mask=index < count)


@triton.jit
def product(a, b, c, SIZE: tl.constexpr, INNER: tl.constexpr):
    rows, columns, inner = tl.arange(0, SIZE), tl.arange(0, SIZE), tl.arange(0, INNER)
    left = tl.load(a + rows[:, None] * INNER + inner[None, :])
    right = tl.load(b + inner[:, None] * SIZE + columns[None, :])
    tl.store(c + rows[:, None] * SIZE + columns[None, :], tl.dot(left, right))


def cast_launch(given: torch.dtype = torch.bfloat16, wanted: torch.dtype = torch.float8_e4m3fn) -> Launch:
    source, target = torch.empty(64, dtype=given), torch.empty(64, dtype=wanted)
    return Launch("cast", cast, (source, target, 64, 64), {"num_warps": 1}, "", "")


def scale_launch(factor: float | int | None = 0.5, count: int = 1000, offset: int = 0, num_warps: int = 4) -> Launch:
    source, target = torch.empty(2048)[offset:], torch.empty(2048)
    return Launch("scale", scale, (source, target, factor, count, 1024), {"num_warps": num_warps}, "", "")


def product_launch(size: int, inner: int) -> Launch:
    a, b, c = torch.empty(size, inner).half(), torch.empty(inner, size).half(), torch.empty(size, size)
    return Launch("product", product, (a, b, c, size, inner), {"num_warps": 8}, "", "")
