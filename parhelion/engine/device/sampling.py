"""Choosing tokens on the device, inside the step's graph: greedy, and the common set of sampling parameters."""

from __future__ import annotations

import torch

from parhelion.engine.device.state import DeviceState
from parhelion.engine.step_layout import StepInts
from parhelion.ops.argmax import Argmax
from parhelion.ops.resolve import Resolver
from parhelion.ops.top_k_top_p_sampling import TopKTopPSampling

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


class DeviceSampler:
    """Samples rows of logits; every shape is the bucket's, and nothing is read back.

    Args:
        vocab_size: of the model.
        dtype: of the logits as the model computes them.
        resolver: finds the providers.
    """

    def __init__(self, vocab_size: int, dtype: torch.dtype, resolver: Resolver) -> None:
        self._argmax = resolver.launcher(Argmax(vocab_size, dtype))
        self._sample = resolver.launcher(TopKTopPSampling(vocab_size))

    def greedy(self, logits: torch.Tensor) -> torch.Tensor:
        """[num_rows, vocab_size] of ``dtype`` to the likeliest ids, [num_rows] int64."""
        ids: torch.Tensor = self._argmax(logits)
        return ids

    def draw(self, logits: torch.Tensor, ints: StepInts, state: DeviceState) -> torch.Tensor:
        """[num_rows, vocab_size] float32 to ids drawn as each row's slot asks, greedily at temperature 0."""
        parameters = state.parameters[ints.row_slot.long()]
        floats = parameters[:, :3].contiguous().view(torch.float32)
        seeds = parameters[:, 4].long() & 0xFFFFFFFF | parameters[:, 5].long() << 32
        numbers = uniform(seeds, ints.output_index.long())
        ids: torch.Tensor = self._sample(
            logits,
            floats[:, 0].contiguous(),
            parameters[:, 3].contiguous(),
            floats[:, 1].contiguous(),
            floats[:, 2].contiguous(),
            numbers,
        )
        return ids


def uniform(seeds: torch.Tensor, counters: torch.Tensor) -> torch.Tensor:
    """[n] int64 seeds and counters to float32 numbers in [0, 1) that depend on nothing else.

    Source: as ``parhelion.engine.sampler.uniform``, with int64 arithmetic that wraps around; float32 keeps 24 bits.
    """
    mixed = _mix(_mix(seeds) ^ counters)
    return _shifted(mixed, 40).to(torch.float32) * 2.0**-24


def _mix(values: torch.Tensor) -> torch.Tensor:
    values = values + _GOLDEN
    values = (values ^ _shifted(values, 30)) * _FIRST
    values = (values ^ _shifted(values, 27)) * _SECOND
    return values ^ _shifted(values, 31)


def _shifted(values: torch.Tensor, bits: int) -> torch.Tensor:
    """A logical shift to the right, of values that torch takes for signed."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
