"""``top_k_top_p_sampling``: a token drawn for each row from what top-k, top-p and min-p leave of its distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, randn


@dataclass(frozen=True)
class TopKTopPSampling(Contract):
    """Draws by inverting the distribution function at given numbers, so that equal inputs give equal tokens.

    With x the logits over the temperature and a row's tokens in the order of their ids:
    1. top-k keeps the tokens whose x is at least the k-th largest;
    2. top-p keeps, of those, the ones above which (at larger x) lies less than ``top_p`` of their mass, which is the
       smallest set of likeliest tokens that reaches ``top_p``, and at least the likeliest;
    3. min-p keeps, of those, the ones at least ``min_p`` times as likely as the likeliest;
    4. the token is the first whose running sum of the kept tokens' masses is above ``uniform`` times their sum.

    Equal tokens are kept or dropped together: a filter is a bound of x, which neither needs nor defines an order among
    them, so a program can search for it without sorting. For the same reason the running sum goes by id, not by
    likelihood. (``parhelion.engine.sampler`` applies the same filters in the same order; it cuts through equal tokens
    by id and sums by likelihood, so it draws other tokens from the same numbers, of the same distribution.)

    Inputs:
        logits [M, vocab_size] float32; -inf hides a token, a NaN makes its row's token arbitrary.
        temperature [M] float32; 0 takes the likeliest token, the first of equal ones.
        top_k [M] int32; 0 or less, or more than there are, keeps all.
        top_p [M] float32; 1 keeps all.
        min_p [M] float32; 0 keeps all.
        uniform [M] float32 in [0, 1).
    Output: ids [M] int64. A provider that sums in float32 may find the neighbour of a token whose running sum is within
    rounding of the number.
    """

    vocab_size: int

    name: ClassVar[str] = "top_k_top_p_sampling"
    outputs: ClassVar[tuple[Output, ...]] = (Output("ids", relative=0.0, max_flips=0.02),)
    instead: ClassVar[str] = "torch"

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        """Every fourth row is greedy; the others are drawn from what is left of peaked distributions."""
        row = torch.arange(num_tokens)
        inputs = (
            randn((num_tokens, self.vocab_size), torch.float32, device, generator, scale=4.0),
            (row % 4) * 0.3,
            torch.where(row % 3 == 0, 0, 20 + row % 50).int(),
            torch.where(row % 2 == 0, 0.95, 1.0),
            torch.where(row % 5 == 4, 0.02, 0.0),
            torch.rand((num_tokens,), generator=generator),
        )
        return tuple(value.to(device) for value in inputs)

    def reference(
        self,
        logits: torch.Tensor,
        temperature: torch.Tensor,
        top_k: torch.Tensor,
        top_p: torch.Tensor,
        min_p: torch.Tensor,
        uniform: torch.Tensor,
    ) -> torch.Tensor:
        """By sorting, with the sums in float64. x is a float32, as everybody's: bounds are compared with it."""
        scaled = over_temperature(logits, temperature)
        bound = least_kept(scaled, top_k, top_p, min_p, torch.float64)
        drawn = drawn_above(scaled, bound, uniform, torch.float64)
        return torch.where(temperature == 0, first_largest(logits), drawn)

    def traffic(self, num_tokens: int) -> Traffic:
        """The logits are read once; an exponential, two comparisons and two sums an element."""
        elements = num_tokens * self.vocab_size
        return Traffic(4 * elements + num_tokens * (5 * 4 + 8), 5 * elements)


def over_temperature(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """x [M, vocab_size]; greedy rows, whose temperature is 0, are left as they are."""
    return logits / torch.where(temperature == 0, 1.0, temperature)[:, None]


def first_largest(logits: torch.Tensor) -> torch.Tensor:
    """Of each row the id of the largest element, the first of equal ones."""
    ids = torch.arange(logits.shape[1], device=logits.device)
    is_largest = logits == logits.amax(-1, keepdim=True)
    return torch.where(is_largest, ids, logits.shape[1] - 1).amin(-1)


def least_kept(
    scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor, sums: torch.dtype
) -> torch.Tensor:
    """The bound [M, 1] that the three filters come to: a token is kept if its x is at least that.

    Args:
        sums: dtype of exponentials and sums.
    """
    vocab_size = scaled.shape[1]
    ordered = scaled.sort(-1, descending=True).values
    largest = ordered[:, :1]
    k = torch.where((top_k <= 0) | (top_k > vocab_size), vocab_size, top_k).long()
    kth = ordered.gather(1, k[:, None] - 1)
    masses = torch.where(ordered >= kth, (ordered.to(sums) - largest).exp(), 0.0)
    running = masses.cumsum(-1)
    # The first of equal tokens has just the larger ones before it.
    kept = ((running - masses) < top_p[:, None] * running[:, -1:]).sum(-1, keepdim=True).clamp(min=1)
    nucleus = torch.where(top_p[:, None] < 1, ordered.gather(1, kept - 1), -float("inf"))
    return torch.maximum(torch.maximum(kth, nucleus), largest + min_p[:, None].log())


def drawn_above(scaled: torch.Tensor, bound: torch.Tensor, uniform: torch.Tensor, sums: torch.dtype) -> torch.Tensor:
    """The first id [M] at which the running mass of the tokens not below the bound exceeds ``uniform`` of it all."""
    largest = scaled.amax(-1, keepdim=True)
    masses = torch.where(scaled >= bound, (scaled.to(sums) - largest).exp(), 0.0)
    running = masses.cumsum(-1)
    drawn = (running <= uniform[:, None] * running[:, -1:]).sum(-1)
    # Rounding may push the number to the very end: stay on a token of positive mass.
    ids = torch.arange(scaled.shape[1], device=scaled.device)
    return torch.minimum(drawn, torch.where(masses > 0, ids, 0).amax(-1))
