"""``top_k_top_p_sampling`` as a tile program: a program takes a row and searches for its bounds without sorting.

A float32's bits, as an integer, order like the number (negative ones mirrored). The k-th largest x, and the x above
which lies less than ``top_p`` of the mass, are found among these integers by halving twice a pass: 17 passes over the
row, which stays in the second-level cache, and only for rows that ask for them.
"""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.programmatic import start_successor, wait_for_predecessor


def keys_of(x: torch.Tensor) -> torch.Tensor:
    """int32 keys in the order of float32 values; both zeros are 0, and no number has the least key."""
    bits = torch.where(x == 0, 0.0, x).view(torch.int32)
    return torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@helion.kernel(static_shapes=False)
def top_k_top_p_sampling(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
    ids: torch.Tensor,
    programmatic: hl.constexpr,
) -> None:
    num_tokens, vocab_size = logits.size()
    vocab_size = hl.specialize(vocab_size)
    for row in hl.grid(num_tokens):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        heat = temperature[row]
        is_greedy = heat == 0
        divisor = torch.where(is_greedy, 1.0, heat)
        largest = hl.full([], -float("inf"), dtype=torch.float32)
        for tile_v in hl.tile(vocab_size):
            largest = torch.maximum(largest, torch.amax(logits[row, tile_v] / divisor, -1))
        # Of 64 bits, so that differences fit.
        top = keys_of(largest).to(torch.int64)

        # The largest key that at least k tokens reach.
        k = top_k[row]
        wants_k = (k > 0) & (k < vocab_size) & (heat != 0)
        low = top * 0 - 2147483648
        high = top + 1
        for _pass in hl.tile(torch.where(wants_k, 17, 0), block_size=1):
            step = torch.maximum((high - low) // 4, low * 0 + 1)
            pivot1 = (low + step).to(torch.int32)
            pivot2 = (low + 2 * step).to(torch.int32)
            pivot3 = (low + 3 * step).to(torch.int32)
            first = hl.zeros([], dtype=torch.int32)
            second = hl.zeros([], dtype=torch.int32)
            third = hl.zeros([], dtype=torch.int32)
            for tile_v in hl.tile(vocab_size):
                keys = keys_of(logits[row, tile_v] / divisor)
                first = first + torch.sum((keys >= pivot1).to(torch.int32), -1).to(torch.int32)
                second = second + torch.sum((keys >= pivot2).to(torch.int32), -1).to(torch.int32)
                third = third + torch.sum((keys >= pivot3).to(torch.int32), -1).to(torch.int32)
            reached = (first >= k).to(torch.int64) + (second >= k).to(torch.int64) + (third >= k).to(torch.int64)
            low = low + reached * step
            high = torch.where(reached == 3, high, torch.minimum(high, low + step))
        bound = low.to(torch.int32)

        # The smallest key above which lies less than top_p of the mass that is left.
        p = top_p[row]
        wants_p = (p < 1) & (heat != 0)
        whole = hl.zeros([], dtype=torch.float32)
        for tile_v in hl.tile(vocab_size):
            x = logits[row, tile_v] / divisor
            whole = whole + torch.sum(torch.where(keys_of(x) >= bound, torch.exp(x - largest), 0.0), -1)
        low = top * 0 - 2147483648
        high = top
        for _pass in hl.tile(torch.where(wants_p, 17, 0), block_size=1):
            step = torch.maximum((high - low) // 4, low * 0 + 1)
            pivot1 = (low + step).to(torch.int32)
            pivot2 = (low + 2 * step).to(torch.int32)
            pivot3 = (low + 3 * step).to(torch.int32)
            first = hl.zeros([], dtype=torch.float32)
            second = hl.zeros([], dtype=torch.float32)
            third = hl.zeros([], dtype=torch.float32)
            for tile_v in hl.tile(vocab_size):
                x = logits[row, tile_v] / divisor
                keys = keys_of(x)
                mass = torch.where(keys >= bound, torch.exp(x - largest), 0.0)
                first = first + torch.sum(torch.where(keys > pivot1, mass, 0.0), -1)
                second = second + torch.sum(torch.where(keys > pivot2, mass, 0.0), -1)
                third = third + torch.sum(torch.where(keys > pivot3, mass, 0.0), -1)
            left = p * whole
            passed = (
                (first >= left).to(torch.int64) + (second >= left).to(torch.int64) + (third >= left).to(torch.int64)
            )
            low = low + passed * step
            high = torch.where(passed == 3, high, torch.minimum(high, low + step))
        bound = torch.where(wants_p, torch.maximum(bound, high.to(torch.int32)), bound)
        least = largest + torch.log(min_p[row])

        total = hl.zeros([], dtype=torch.float32)
        for tile_v in hl.tile(vocab_size):
            x = logits[row, tile_v] / divisor
            is_kept = (keys_of(x) >= bound) & (x >= least)
            total = total + torch.sum(torch.where(is_kept, torch.exp(x - largest), 0.0), -1)
        target = uniform[row] * total
        running = hl.zeros([], dtype=torch.float32)
        drawn = hl.full([], vocab_size, dtype=torch.int32)
        last = hl.zeros([], dtype=torch.int32)
        likeliest = hl.full([], vocab_size - 1, dtype=torch.int32)
        for tile_v in hl.tile(vocab_size):
            x = logits[row, tile_v] / divisor
            is_kept = (keys_of(x) >= bound) & (x >= least)
            mass = torch.where(is_kept, torch.exp(x - largest), 0.0)
            sums = torch.cumsum(mass, 0) + running
            # Partial sums need not agree to the last bit with the running one: a token without mass is never drawn.
            hit = (sums > target) & (mass > 0)
            drawn = torch.minimum(drawn, torch.amin(torch.where(hit, tile_v.index, vocab_size), -1).to(torch.int32))
            last = torch.maximum(last, torch.amax(torch.where(mass > 0, tile_v.index, 0), -1).to(torch.int32))
            at_top = torch.where(x == largest, tile_v.index, vocab_size - 1)
            likeliest = torch.minimum(likeliest, torch.amin(at_top, -1).to(torch.int32))
            running = running + torch.sum(mass, -1)
        ids[row] = torch.where(is_greedy, likeliest, torch.minimum(drawn, last)).to(torch.int64)
