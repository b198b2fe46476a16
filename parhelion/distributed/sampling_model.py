"""Whether ranks draw tokens quicker by telling each other a few numbers a row, or all logits.

Both are estimates of the planner's kind: the links' model for what is exchanged, so many microseconds a launch, and
bytes over the device's bandwidth for what is computed. The draw from all logits takes what the pack says; the figures
of the others are fitted to what was measured on two H200s (``benchmarks/h100x2_tp.py --only draws``), from 1 to 64
rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch

from parhelion.distributed.collectives import NETWORK_GB_S, Link, network
from parhelion.distributed.devices import preset_of
from parhelion.distributed.group import Group
from parhelion.distributed.kernel_times import LEAST_US, REACHED
from parhelion.distributed.sampling import MOST_CANDIDATES, Among
from parhelion.ops.collectives.machines import why_not_one_machine
from parhelion.ops.resolve import Resolver
from parhelion.ops.top_k_top_p_sampling import TopKTopPSampling
from parhelion.platform.device import device_name


@dataclass(frozen=True)
class Work:
    """What a draw by ranks takes: counted in ``SamplingOverRanks``.

    Attributes:
        numbers: of 4 bytes that a rank tells of each row at first.
        launches: of operators, counted.
        bytes_per_logit: of a rank's, over the device's bandwidth the time that each of them adds.
        sums: messages that add up how many tokens, or what mass, there are at each of 256 digits.
    """

    numbers: int
    launches: int
    bytes_per_logit: int
    sums: int


WORK = MappingProxyType(
    {
        Among.FEW: Work(numbers=MOST_CANDIDATES + 1, launches=100, bytes_per_logit=130, sums=0),
        Among.ALL: Work(numbers=1, launches=57, bytes_per_logit=105, sums=0),
        Among.ANY: Work(numbers=1, launches=270, bytes_per_logit=1400, sums=8),
    }
)

OPERATOR_US = 2.0
"""Of each of those launches."""

_SUM_BYTES = 256 * 8
"""Of a row."""

_MOST_ROWS, _NEVER = 1024, -1

_GATHERING_LAUNCHES = 3
"""Of whoever gathers logits: the ranks' parts are put side by side, and widened."""


@dataclass(frozen=True)
class SamplingModel:
    """Microseconds of a draw on a device of a group.

    Attributes:
        vocab_size: of all ranks.
        num_ranks: of the group.
        itemsize: bytes of a logit.
        bandwidth: of the device's memory, bytes a second.
        link: between the ranks.
        resolver: knows what the draw from all logits takes.
    """

    vocab_size: int
    num_ranks: int
    itemsize: int
    bandwidth: float
    link: Link
    resolver: Resolver

    def least_rows(self, among: Among) -> int:
        """The least power of two of rows that are drawn quicker by ranks that keep their logits to themselves."""
        sizes = (1 << power for power in range(_MOST_ROWS.bit_length()))
        return next((size for size in sizes if self.shared_us(size, among) < self.gathered_us(size)), _NEVER)

    def shared_us(self, num_rows: int, among: Among) -> float:
        """By the ranks together: a message of candidates, or of maxima, those that search, the masses and the ids."""
        work = WORK[among]
        messages = self._told_us(num_rows * 4 * work.numbers) + 2 * self._told_us(num_rows * 8)
        messages += work.sums * self.link.all_reduce_us(num_rows * _SUM_BYTES, self.num_ranks)
        own_logits = num_rows * -(-self.vocab_size // self.num_ranks)
        return messages + work.launches * OPERATOR_US + self._memory_us(own_logits * work.bytes_per_logit)

    def gathered_us(self, num_rows: int) -> float:
        """By each rank from all logits, which it is told, puts side by side and widens."""
        logits = num_rows * self.vocab_size
        contract = TopKTopPSampling(self.vocab_size)
        draw_us = self.resolver.time_us(contract, num_rows)
        if draw_us is None:
            draw_us = LEAST_US + self._memory_us(contract.traffic(num_rows).bytes)
        moved = self._memory_us(logits * (2 * self.itemsize + self.itemsize + 4))
        exchanged = self.link.all_gather_us(logits * self.itemsize, self.num_ranks)
        return exchanged + _GATHERING_LAUNCHES * LEAST_US + moved + draw_us

    def _told_us(self, bytes_per_rank: int) -> float:
        return self.link.all_gather_us(bytes_per_rank * self.num_ranks, self.num_ranks)

    def _memory_us(self, num_bytes: float) -> float:
        return 1e6 * num_bytes / (REACHED * self.bandwidth)


@dataclass(frozen=True)
class Crossover:
    """From how many rows on ranks draw together.

    Attributes:
        least_rows: by among how many tokens rows draw, in the order of ``Among``; None: never.
    """

    least_rows: tuple[int | None, ...]

    def shares(self, num_rows: int, among: Among) -> bool:
        """Whether so many rows are drawn by the ranks together."""
        least = self.least_rows[list(Among).index(among)]
        return least is not None and num_rows >= least


def crossover(vocab_size: int, group: Group, dtype: torch.dtype, resolver: Resolver) -> Crossover:
    """Of a group on the resolver's device, the same on all ranks: the first one's.

    Processes on a CPU always draw together. On GPUs that no preset is of they never do, as nothing is known of their
    links.
    """
    if resolver.device.type == "cpu":
        return Crossover((1,) * len(Among))
    model = sampling_model(vocab_size, group.size, dtype, resolver)
    own = [_NEVER if model is None else model.least_rows(among) for among in Among]
    agreed = group.from_first(torch.tensor(own, device=resolver.device)).tolist()
    return Crossover(tuple(None if each == _NEVER else each for each in agreed))


def sampling_model(vocab_size: int, num_ranks: int, dtype: torch.dtype, resolver: Resolver) -> SamplingModel | None:
    """Of the resolver's device, if a preset is of its kind."""
    known = preset_of(device_name(resolver.device))
    if known is None:
        return None
    link = known.link if why_not_one_machine() is None else network(NETWORK_GB_S)
    return SamplingModel(vocab_size, num_ranks, dtype.itemsize, known.ceilings.bandwidth, link, resolver)
