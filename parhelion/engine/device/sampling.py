"""Choosing tokens on the device, inside the step's graph: greedy, and the common set of sampling parameters; from all
logits, or by ranks of which each has logits of its part of the vocabulary.
"""

from __future__ import annotations

import torch

from parhelion.distributed.group import Group
from parhelion.distributed.sampling import Among, Filters, SamplingOverRanks
from parhelion.distributed.sampling_model import Crossover, crossover
from parhelion.engine.device.state import DeviceState
from parhelion.engine.step_layout import StepInts
from parhelion.layers.vocabulary import rows_per_rank
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
        self._vocab_size = vocab_size
        self._dtype = dtype
        self._resolver = resolver
        self._argmax = resolver.launcher(Argmax(vocab_size, dtype))
        self._sample = resolver.launcher(TopKTopPSampling(vocab_size))

    def greedy(self, logits: torch.Tensor) -> torch.Tensor:
        """[num_rows, vocab_size] of ``dtype`` to the likeliest ids, [num_rows] int64."""
        ids: torch.Tensor = self._argmax(logits)
        return ids

    def draw(self, logits: torch.Tensor, ints: StepInts, state: DeviceState) -> torch.Tensor:
        """[num_rows, vocab_size] float32 to ids drawn as each row's slot asks, greedily at temperature 0."""
        asked = filters_of(ints, state)
        ids: torch.Tensor = self._sample(
            logits, asked.temperature, asked.top_k, asked.top_p, asked.min_p, asked.uniform
        )
        return ids

    def of_ranks(self, group: Group) -> SamplerOfRanks | None:
        """The same by ranks that share a model; None if one has it whole."""
        if group.is_alone:
            return None
        return SamplerOfRanks(self._vocab_size, group, crossover(self._vocab_size, group, self._dtype, self._resolver))


class SamplerOfRanks:
    """Draws the tokens that ``DeviceSampler`` draws, by ranks that do not tell each other their logits.

    Args:
        vocab_size: of the model.
        group: the ranks that share it.
        crossover: from how many rows on that is quicker.
    """

    def __init__(self, vocab_size: int, group: Group, crossover: Crossover) -> None:
        self._sampling = SamplingOverRanks(vocab_size, rows_per_rank(vocab_size, group), group)
        self._crossover = crossover

    def serves(self, num_rows: int, among: Among) -> bool:
        """Whether rows are drawn so, or from all logits."""
        return self._crossover.shares(num_rows, among)

    def draw(self, own_logits: torch.Tensor, ints: StepInts, state: DeviceState, among: Among) -> torch.Tensor:
        """[num_rows, own tokens] of any dtype to ids [num_rows] int64, the same on all ranks."""
        return self._sampling.draw(own_logits, filters_of(ints, state), among)


def filters_of(ints: StepInts, state: DeviceState) -> Filters:
    """How each row's slot asks for its token to be drawn, and the number that it is drawn by."""
    parameters = state.parameters[ints.row_slot.long()]
    floats = parameters[:, :3].contiguous().view(torch.float32)
    seeds = parameters[:, 4].long() & 0xFFFFFFFF | parameters[:, 5].long() << 32
    return Filters(
        temperature=floats[:, 0].contiguous(),
        top_k=parameters[:, 3].contiguous(),
        top_p=floats[:, 1].contiguous(),
        min_p=floats[:, 2].contiguous(),
        uniform=uniform(seeds, ints.output_index.long()),
    )


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
