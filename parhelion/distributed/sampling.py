"""Drawing tokens where each rank has logits of its part of the vocabulary: no rank is told another's logits.

The draw is that of ``TopKTopPSampling``: with x the logits over the temperature, filters come to a bound of x, and the
token is the first by id at which the running mass of what is not below the bound exceeds ``uniform`` of it all. Ranks
hold ids in their order, so each needs no more than the others' sums:

1. The bound. Of rows whose top-k is small every rank tells its largest x, among which the k-th largest of all is, with
   all that is above it. Rows without top-k and top-p need no more than the largest. Of any other the bound is searched:
   digit by digit of float32 numbers' keys, ranks add up how many tokens, or what mass, they have at each value of the
   digit.
2. The draw. Every rank tells the mass that it keeps, so that all know who has the token; then it is told.

Masses are integers, in units of 2**-40 of the likeliest token's: their sums are exact, so the token does not depend on
how many ranks there are. Nothing is read back, and shapes follow from the number of rows: a CUDA graph may hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch.nn.functional import pad

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


class Among(Enum):
    """Among how many tokens all of a step's rows draw, but for those that are greedy: a top-k from 1 to
    ``MOST_CANDIDATES`` leaves few, without top-k and top-p there are all (but for those of min-p), and there may be any
    number.
    """

    FEW = "few"
    ALL = "all"
    ANY = "any"


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

    def draw(self, logits: torch.Tensor, filters: Filters, among: Among) -> torch.Tensor:
        """Token ids [M] int64.

        Args:
            logits: [M, own tokens] of any dtype, this rank's, without padding.
            among: how many tokens; few are ``most_candidates``.
        """
        if among is Among.FEW:
            return self._drawn_among_few(logits, filters)
        return self._drawn_among(logits, filters, self._searched_bound if among is Among.ANY else None)

    def _drawn_among_few(self, logits: torch.Tensor, filters: Filters) -> torch.Tensor:
        is_greedy, divisor = _divisor(filters.temperature)
        # Different logits of 16 bits stay different when they are divided; such of 32 bits need not.
        own = logits / divisor if logits.dtype == torch.float32 else logits
        own = self._padded(own)
        rest = 1.0 if logits.dtype == torch.float32 else divisor
        candidates, places = own.topk(self._num_candidates)
        by_unit = (own == candidates[:, -1:]).view(len(own), self._num_units, UNIT).sum(-1)
        candidates = candidates / rest
        top, bound = self._bound_among(candidates, by_unit.sum(-1), filters)
        bound = _above_min_p(top, bound, filters.min_p, is_greedy)
        masses = _mass(candidates, top).mul_(candidates >= bound).long()
        # All that equal the last candidate are counted, whether they are candidates or not.
        by_unit *= masses[:, -1:]
        masses *= candidates > candidates[:, -1:]
        by_unit.scatter_add_(1, places // UNIT, masses)
        return self._drawn(own, rest, top, bound, by_unit, filters.uniform[:, None].masked_fill(is_greedy, 0.0))

    def _drawn_among(
        self,
        logits: torch.Tensor,
        filters: Filters,
        search: Callable[[torch.Tensor, torch.Tensor, Filters], torch.Tensor] | None,
    ) -> torch.Tensor:
        is_greedy, divisor = _divisor(filters.temperature)
        x = self._padded(logits / divisor)
        top = _finite(self._group.gather_columns(x.amax(-1, keepdim=True)).amax(-1, keepdim=True))
        bound = torch.full_like(top, -torch.inf) if search is None else search(x, top, filters)
        bound = _above_min_p(top, bound, filters.min_p, is_greedy)
        masses = _mass(x, top).mul_(x >= bound).view(len(x), self._num_units, UNIT)
        by_unit = masses.sum(-1, dtype=torch.int64)
        return self._drawn(x, 1.0, top, bound, by_unit, filters.uniform[:, None].masked_fill(is_greedy, 0.0))

    def _padded(self, own: torch.Tensor) -> torch.Tensor:
        """[M, units * UNIT], -inf behind this rank's tokens."""
        missing = self._num_units * UNIT - own.shape[1]
        return pad(own, (0, missing), value=-torch.inf) if missing else own.contiguous()

    def _bound_among(
        self, candidates: torch.Tensor, num_last: torch.Tensor, filters: Filters
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest x of all ranks, and what top-k and top-p come to, each [M, 1]: from one message.

        Args:
            candidates: [M, candidates] float32, this rank's largest x in descending order.
            num_last: [M] how many of its x equal the last of them.
        """
        size = self._num_candidates
        num_others = num_last - (candidates == candidates[:, -1:]).sum(-1)
        told = torch.cat((candidates.view(torch.int32), num_others[:, None].int()), dim=1)
        told = self._group.gather_columns(told).view(len(told), self._group.size, size + 1)
        values = told[..., :size].view(torch.float32)
        top = _finite(values[..., 0].amax(1, keepdim=True))
        masses = _mass(values, top[..., None]).long()
        masses[..., -1].mul_(1 + told[..., -1])
        ordered, order = values.flatten(1).sort(-1, descending=True)
        # A k that is above the number of tokens meets padding.
        kth = ordered.gather(1, filters.top_k[:, None].long().clamp(1, ordered.shape[1]) - 1)
        masses = masses.flatten(1).gather(1, order).mul_(ordered >= kth)
        running = masses.cumsum(-1)
        # The first of equal tokens has just the larger ones before it.
        is_kept = running - masses < _share(filters.top_p, running[:, -1])
        nucleus = ordered.gather(1, is_kept.sum(-1, keepdim=True) - 1)
        return top, torch.where(filters.top_p[:, None] < 1, torch.maximum(kth, nucleus), kth)

    def _searched_bound(self, x: torch.Tensor, top: torch.Tensor, filters: Filters) -> torch.Tensor:
        """What top-k and top-p come to, [M, 1], from eight messages."""
        keys = keys_of(x).long() - _LEAST_KEY
        k = filters.top_k[:, None]
        kth = self._searched(keys, torch.ones_like(keys), lambda _: k.clamp(min=1))
        kth = torch.where((k > 0) & (k < self._vocab_size), kth, -torch.inf)
        masses = _mass(x, top).mul_(x >= kth).long()
        nucleus = self._searched(keys, masses, lambda total: _share(filters.top_p, total))
        return torch.where(filters.top_p[:, None] < 1, torch.maximum(kth, nucleus), kth)

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
            chosen = (from_digit >= goal).sum(-1, keepdim=True).clamp(min=1) - 1
            beyond = from_digit.gather(1, chosen) - by_digit.gather(1, chosen)
            found = found << _DIGIT_BITS | chosen
        return values_of((found + _LEAST_KEY).int())

    def _drawn(
        self,
        own: torch.Tensor,
        divisor: torch.Tensor | float,
        top: torch.Tensor,
        bound: torch.Tensor,
        by_unit: torch.Tensor,
        uniform: torch.Tensor,
    ) -> torch.Tensor:
        """Ids [M] int64 of what is drawn from the bound on.

        Args:
            own: [M, units * UNIT], over the divisor this rank's x.
            top, bound, uniform: [M, 1].
            by_unit: [M, units] int64, what mass each unit keeps.
        """
        by_rank = self._group.gather_columns(by_unit.sum(-1, keepdim=True))
        ends = by_rank.cumsum(-1)
        target = (uniform.double() * ends[:, -1:]).long()
        owner = _first_above(ends, target)
        rank = self._group.rank
        running = by_unit.cumsum(-1) + (ends - by_rank)[:, rank : rank + 1]
        unit = _first_above(running, target)
        before = running.gather(1, unit) - by_unit.gather(1, unit)
        place = unit[..., None].expand(-1, 1, UNIT)
        x = own.view(len(own), self._num_units, UNIT).gather(1, place)[:, 0] / divisor
        lane = _first_above(_mass(x, top).mul_(x >= bound).long().cumsum(-1) + before, target)
        # Of a row without any mass, whose token is arbitrary, it must be one.
        token = (unit * UNIT + lane + self._first).clamp(max=self._vocab_size - 1)
        return self._group.gather_columns(token).gather(1, owner)[:, 0]


def _divisor(temperature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows are greedy, and what their logits are divided by, each [M, 1]."""
    is_greedy = (temperature == 0)[:, None]
    return is_greedy, temperature[:, None].masked_fill(is_greedy, 1.0)


def _above_min_p(top: torch.Tensor, bound: torch.Tensor, min_p: torch.Tensor, is_greedy: torch.Tensor) -> torch.Tensor:
    """The bound of all filters [M, 1]: of greedy rows the likeliest token."""
    return torch.where(is_greedy, top, torch.maximum(bound, top + min_p[:, None].log()))


def _mass(x: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """exp(x - top) in units of 2**-40, float32, whose whole parts count."""
    return x.sub(top).exp_().mul_(_ONE)


def _finite(top: torch.Tensor) -> torch.Tensor:
    """So that the mass of hidden tokens is 0 even where all are."""
    return top.clamp(min=torch.finfo(torch.float32).min)


def _share(top_p: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """[M, 1] int64 what mass of a total [M] a nucleus must reach; the likeliest token is in any."""
    return (top_p.double() * total).ceil().long().clamp(min=1)[:, None]


def _first_above(running: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Where running sums [M, n] first exceed a target [M, 1], the last place if they do not: [M, 1] int64."""
    return (running <= target).sum(-1, keepdim=True).clamp(max=running.shape[1] - 1)
