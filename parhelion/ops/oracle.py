"""What a contract gives for some inputs in float64, on their device, and launchers beside it."""

from __future__ import annotations

import torch

from parhelion.ops.check import OutputError, compare
from parhelion.ops.contract import Contract, Launcher, Tensors, as_tuple
from parhelion.ops.inputs import map_tensors, tensors_in

_NARROW = (torch.bfloat16, torch.float16, torch.float32)

_WORKSPACES = tuple(1 << power for power in range(9, 27, 2))
"""Bytes of the free blocks, beside those of the outputs' sizes, that a launcher may be given for its scratch memory."""


class Oracle:
    """The outputs that a contract promises for these inputs; computed once, for as many launchers as there are.

    Args:
        contract: which.
        inputs: all of the contract's, never written to.
    """

    def __init__(self, contract: Contract, inputs: Tensors) -> None:
        self._contract = contract
        self._inputs = inputs
        self._device = tensors_in(inputs)[0].device
        plain = as_tuple(contract.reference(*inputs))
        self._outputs = tuple(torch.empty_like(output, device="meta") for output in plain)
        del plain
        self._expected = as_tuple(contract.reference(*map_tensors(inputs, _doubled)))

    def compare(self, launch: Launcher) -> tuple[OutputError, ...]:
        """Launch once, on copies of the inputs, where memory is full of NaN; every output beside the oracle's.

        Raises whatever the launcher raises.
        """
        own = map_tensors(self._inputs, torch.clone)
        poison_free_memory(self._outputs, self._device)
        actual = as_tuple(launch(*own))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return tuple(compare(self._contract, self._widened(actual), self._expected))

    def _widened(self, actual: Tensors) -> Tensors:
        """The outputs in float64 where the oracle is, provided that they have the dtype that they should have."""
        return tuple(
            got.double() if want.dtype == torch.float64 and got.dtype == plain.dtype else got
            for got, plain, want in zip(actual, self._outputs, self._expected, strict=True)
        )


def poison_free_memory(outputs: Tensors, device: torch.device) -> None:
    """Leave blocks of NaN bytes where the allocator finds room for these outputs, and for scratch memory, next."""
    sizes = [max(1, output.nbytes) for output in outputs]
    held = [torch.full((size,), 0xFF, dtype=torch.uint8, device=device) for size in (*sizes, *sizes, *_WORKSPACES)]
    del held


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.dtype in _NARROW else x
