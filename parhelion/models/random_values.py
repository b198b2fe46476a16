"""Many random numbers in little time, for weights whose values do not matter but to whoever compares."""

from __future__ import annotations

import math
from collections.abc import Callable
from hashlib import blake2b

import torch

# A CPU draws some 10**8 normal numbers a second, too few for billions of weights. So large tensors there repeat a pool.
# Its size is a prime: no two rows of a weight start at the same place of it, so none are equal.
_POOL_ELEMENTS = (1 << 24) - 3
_LARGE = 1 << 20

_Draw = Callable[[tuple[int, ...]], torch.Tensor]


class RandomValues:
    """Random tensors on a device, from a seed."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed = seed
        self._generator = torch.Generator(device)
        self._device = device
        self._pools: dict[torch.dtype, torch.Tensor] = {}

    def begin(self, name: str) -> None:
        """What follows depends on the seed and this name, not on what was drawn before: who leaves some tensors out
        gets the others as they are."""
        digest = blake2b(f"{self._seed} {name}".encode(), digest_size=7).digest()
        self._generator.manual_seed(int.from_bytes(digest))

    def normal(self, shape: tuple[int, ...], deviation: float, dtype: torch.dtype) -> torch.Tensor:
        """Normal numbers of mean 0."""
        return self._filled(shape, dtype, lambda size: self._normal(size, dtype) * deviation)

    def codes(self, shape: tuple[int, ...], deviation: float, largest: float, dtype: torch.dtype) -> torch.Tensor:
        """Normal numbers rounded to 8-bit codes, none beyond ``largest``."""

        def draw(size: tuple[int, ...]) -> torch.Tensor:
            values = (self._normal(size, torch.bfloat16) * deviation).clamp(-largest, largest)
            return (values if dtype.is_floating_point else values.round()).to(dtype)

        return self._filled(shape, dtype, draw)

    def _normal(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator, dtype=dtype, device=self._device)

    def _filled(self, shape: tuple[int, ...], dtype: torch.dtype, draw: _Draw) -> torch.Tensor:
        size = math.prod(shape)
        if self._device.type != "cpu" or size < _LARGE:
            return draw(shape)
        start = int(torch.randint(_POOL_ELEMENTS, (1,), generator=self._generator))
        if dtype not in self._pools:
            self.begin(f"pool of {dtype}")
            self._pools[dtype] = draw((_POOL_ELEMENTS,))
        pool = self._pools[dtype]
        result = torch.empty(size, dtype=dtype)
        position = 0
        while position < size:
            piece = pool[start : start + size - position]
            result[position : position + len(piece)].copy_(piece)
            position += len(piece)
            start = 0
        return result.view(shape)
