"""Drawing tokens where each rank has logits of its part of the vocabulary: no rank is told another's logits.

The draw is that of ``TopKTopPSampling``: with x the logits over the temperature, filters come to a bound of x, and the
token is the first by id at which the running mass of what is not below the bound exceeds ``uniform`` of it all. Ranks
hold ids in their order, so each needs no more than the others' sums:

1. The bound. Of rows whose top-k is small every rank tells its largest x, among which the k-th largest of all are,
   with all that is above them. Of any other row the bound is searched: digit by digit of float32 numbers' keys, ranks
   add up how many tokens, or what mass, they have at each value of the digit.
2. The draw. Every rank tells the mass that it keeps, so that all know who has the token; then it is told.

Masses are integers, in units of 2**-40 of the likeliest token's: their sums are exact, so the token does not depend on
how many ranks there are. Nothing is read back, and shapes follow from the number of rows: a CUDA graph may hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from parhelion.distributed.group import Group
from parhelion.ops.sampling_search.numbers import keys_of, values_of

MOST_CANDIDATES = 256
"""Of each rank and row, what is told where top-k is not above it."""

UNIT = 64
"""Neighbouring tokens whose mass is added up first, so that running sums are short."""

_DIGIT_BITS, _KEY_BITS = 8, 32

_LEAST_KEY = -(1 << 31)

_ONE = 2.0**40
"""The likeliest token's mass, as in ``sampling_search.numbers.fixed``."""


@dataclass(frozen=True)
class Filters:
    """How rows are drawn, as ``TopKTopPSampling`` takes it: each of M rows has

    Attributes:
        temperature: [M] float32; 0 takes the likeliest token.
        top_k: [M] int32; 0 or less, or more than there are, keeps all.
        top_p, min_p: [M] float32; 1 and 0 keep all.
        uniform: [M] float32 in [0, 1).
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    uniform: torch.Tensor


class SamplingOverRanks:
    """Draws a token for each row, the same on all ranks.

    Args:
        vocab_size: of all ranks together.
        rows_per_rank: tokens of each rank, padding behind the last ones included.
        group: the ranks.
        most_candidates: of each rank and row.
    """

    def __init__(
        self, vocab_size: int, rows_per_rank: int, group: Group, most_candidates: int = MOST_CANDIDATES
    ) -> None:
        self._vocab_size = vocab_size
        self._group = group
        self._first = rows_per_rank * group.rank
        self._num_units = -(-rows_per_rank // UNIT)
        self._num_candidates = min(most_candidates, self._num_units * UNIT)

    def draw(self, logits: torch.Tensor, filters: Filters, among_few: bool) -> torch.Tensor:
        """Token ids [M] int64.

        Args:
            logits: [M, own tokens] of any dtype, this rank's, without padding.
            among_few: that no row has a top-k above ``most_candidates``, or a top-p without top-k. Rows that are greedy
                may have anything.
        """
        is_greedy = (filters.temperature == 0)[:, None]
        x = self._over_temperature(logits, filters.temperature[:, None].masked_fill(is_greedy, 1.0))
        top, bound = (self._bound_among_few if among_few else self._searched_bound)(x, filters)
        bound = torch.maximum(bound, top + filters.min_p[:, None].log())
        # The first of the likeliest tokens.
        bound, uniform = torch.where(is_greedy, top, bound), filters.uniform[:, None].masked_fill(is_greedy, 0.0)
        return self._drawn(x, top, bound, uniform)

    def _over_temperature(self, logits: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
        """x [M, units * UNIT] float32, -inf behind this rank's tokens."""
        num_real = logits.shape[1]
        x = torch.empty(len(logits), self._num_units * UNIT, dtype=torch.float32, device=logits.device)
        x[:, num_real:] = -torch.inf
        torch.div(logits, divisor, out=x[:, :num_real])
        return x

    def _bound_among_few(self, x: torch.Tensor, filters: Filters) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest x of all ranks, and what top-k and top-p come to, each [M, 1]: of the ranks' largest, in one
        message. What equals a rank's last candidate is counted beside them.
        """
        size = self._num_candidates
        own = x.topk(size).values
        num_others = (x == own[:, -1:]).sum(-1) - (own == own[:, -1:]).sum(-1)
        told = torch.cat((own.view(torch.int32), num_others[:, None].int()), dim=1)
        told = self._group.gather_columns(told).view(len(x), self._group.size, size + 1)
        values = told[..., :size].view(torch.float32)
        top = values.amax((1, 2))[:, None]
        masses = _mass(values, top[..., None]).long()
        masses[..., -1] *= 1 + told[..., -1]
        ordered, order = values.flatten(1).sort(-1, descending=True)
        k = filters.top_k[:, None].long()
        # One that is above the number of tokens meets padding.
        kth = ordered.gather(1, k.clamp(1, ordered.shape[1]) - 1)
        masses = torch.where(ordered >= kth, masses.flatten(1).gather(1, order), 0)
        running = masses.cumsum(-1)
        # The first of equal tokens has just the larger ones before it.
        is_kept = (running - masses).double() < _share(filters.top_p, running[:, -1])
        nucleus = ordered.gather(1, is_kept.sum(-1, keepdim=True) - 1)
        bound = torch.where(filters.top_p[:, None] < 1, torch.maximum(kth, nucleus), kth)
        return top, torch.where(k > 0, bound, -torch.inf)

    def _searched_bound(self, x: torch.Tensor, filters: Filters) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of any rows, in nine messages."""
        top = self._group.gather_columns(x.amax(-1, keepdim=True)).amax(-1, keepdim=True)
        keys = keys_of(x).long() - _LEAST_KEY
        k = filters.top_k[:, None]
        kth = self._searched(keys, torch.ones_like(keys), lambda _: k.clamp(min=1).double())
        kth = torch.where((k > 0) & (k < self._vocab_size), kth, -torch.inf)
        masses = _mass(x, top).mul_(x >= kth).long()
        nucleus = self._searched(keys, masses, lambda total: _share(filters.top_p, total))
        return top, torch.where(filters.top_p[:, None] < 1, torch.maximum(kth, nucleus), kth)

    def _searched(
        self, keys: torch.Tensor, weights: torch.Tensor, goal_of: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """The largest number [M, 1] float32 from which on the weights of all ranks reach a goal.

        Args:
            keys: [M, n] int64 in the order of float32 numbers, from 0 on.
            weights: [M, n] int64.
            goal_of: makes goals [M, 1] of the weights' sums [M].
        """
        found = keys.new_zeros(len(keys), 1)
        beyond = torch.zeros_like(found)
        goal: torch.Tensor | None = None
        for shift in range(_KEY_BITS - _DIGIT_BITS, -1, -_DIGIT_BITS):
            prefix = keys >> shift
            is_inside = prefix >> _DIGIT_BITS == found
            digit = prefix & (1 << _DIGIT_BITS) - 1
            by_digit = keys.new_zeros(len(keys), 1 << _DIGIT_BITS)
            by_digit = by_digit.scatter_add_(1, digit, torch.where(is_inside, weights, 0))
            by_digit = self._group.add_up(by_digit)
            from_digit = beyond + by_digit.flip(1).cumsum(1).flip(1)
            if goal is None:
                goal = goal_of(from_digit[:, 0])
            chosen = (from_digit.double() >= goal).sum(-1, keepdim=True).clamp(min=1) - 1
            beyond = from_digit.gather(1, chosen) - by_digit.gather(1, chosen)
            found = found << _DIGIT_BITS | chosen
        return values_of((found + _LEAST_KEY).int())

    def _drawn(self, x: torch.Tensor, top: torch.Tensor, bound: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """Ids [M] int64 of what is drawn from the bound [M, 1] on."""
        masses = _mass(x, top).mul_(x >= bound).view(len(x), self._num_units, UNIT)
        by_unit = masses.sum(-1, dtype=torch.int64)
        by_rank = self._group.gather_columns(by_unit.sum(-1, keepdim=True))
        ends = by_rank.cumsum(-1)
        target = uniform.double() * ends[:, -1:].double()
        owner, _ = _first_above(by_rank, torch.zeros_like(ends[:, :1]), target)
        rank = self._group.rank
        unit, before = _first_above(by_unit, (ends - by_rank)[:, rank : rank + 1], target)
        in_unit = masses.gather(1, unit[..., None].expand(-1, 1, UNIT))[:, 0].long()
        lane, _ = _first_above(in_unit, before, target)
        # Of a row without any mass, whose token is arbitrary, it must be one.
        own = (self._first + unit * UNIT + lane).clamp(max=self._vocab_size - 1)
        return self._group.gather_columns(own).gather(1, owner)[:, 0]


def _mass(x: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """exp(x - top) in units of 2**-40, float32, whose whole parts count; 0 of hidden tokens even where all are."""
    return x.sub(top.clamp(min=torch.finfo(torch.float32).min)).exp_().mul_(_ONE)


def _share(top_p: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """[M, 1] float64 what mass of a total [M] a nucleus must reach; the likeliest token is in any."""
    return (top_p.double() * total.double()).clamp(min=1.0)[:, None]


def _first_above(masses: torch.Tensor, before: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the running sum of masses [M, n] int64, with ``before`` [M, 1] to begin with, exceeds a target [M, 1]: the
    place, the last one if it does not, and the sum of what is before it, each [M, 1] int64.
    """
    running = before + masses.cumsum(-1)
    place = (running.double() <= target).sum(-1, keepdim=True).clamp(max=masses.shape[1] - 1)
    return place, running.gather(1, place) - masses.gather(1, place)
