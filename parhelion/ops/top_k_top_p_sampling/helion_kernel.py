"""``top_k_top_p_sampling`` as tile programs that read the logits once where a row keeps few tokens, as most do.

A row is cut into units of ``width`` neighbouring tokens, and its units are dealt out to slices like cards.

1. ``scan``, a program a slice: each unit's largest x and its mass; the largest of each of the slice's classes, which
   spread a row's likely tokens evenly wherever they stand.
2. ``resolve``, a program a row: the j-th largest of the classes is a floor that at least j tokens reach, and few more.
   The units that reach it hold all of these tokens. They are compared with one another, each with each, which gives
   their ranks and the masses above them without a sort. If the row keeps no others, that is its token.

Rows that keep more go on with ``sampling_search``. Sums are made in an order that nothing changes.
"""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.sampling_search.numbers import (
    divisor_of,
    keys_of,
    mass_of,
    values_of,
)
from parhelion.ops.sampling_search.state import (
    first_phase,
    leave_done,
    leave_row,
    leave_search,
)


@helion.kernel(static_shapes=False)
def scan(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    peaks: torch.Tensor,
    masses: torch.Tensor,
    classes: torch.Tensor,
    tops: torch.Tensor,
    floors: torch.Tensor,
    width: hl.constexpr,
    slices: hl.constexpr,
    units: hl.constexpr,
    num_classes: hl.constexpr,
    programmatic: hl.constexpr,
) -> None:
    """Of each unit u, which is of slice u % slices, the largest x and its mass, relative to the slice's largest.

    Args:
        peaks, masses: [M, units of a row] float32.
        classes: [M, slices * num_classes] float32, the largest of each class of a slice's tokens.
        tops, floors: [M, slices] float32, a slice's largest x and its smallest that is not hidden.
        units: of a slice; a power of two.
    """
    num_tokens, vocab_size = logits.size()
    vocab_size = hl.specialize(vocab_size)
    num_units = (vocab_size + width - 1) // width
    for row, part in hl.grid([num_tokens, slices]):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        unit = hl.arange(units) * slices + part
        index = unit[:, None] * width + hl.arange(width)[None, :]
        is_there = index < vocab_size
        x = hl.load(logits, [row, index], extra_mask=is_there) / divisor_of(temperature[row])
        x = torch.where(is_there, x, -float("inf"))
        peak = torch.amax(x, 1)
        top = torch.amax(peak, 0)
        hl.store(peaks, [row, unit], peak, extra_mask=unit < num_units)
        hl.store(masses, [row, unit], torch.sum(mass_of(x, top), 1), extra_mask=unit < num_units)
        by_class = torch.amax(torch.amax(x, 0).reshape([num_classes, width // num_classes]), 1)
        hl.store(classes, [row, part * num_classes + hl.arange(num_classes)], by_class)
        tops[row, part] = top
        seen = torch.where(x > -float("inf"), x, float("inf"))
        floors[row, part] = torch.amin(torch.amin(seen, 1), 0)


@helion.kernel(static_shapes=False)
def resolve(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
    peaks: torch.Tensor,
    masses: torch.Tensor,
    classes: torch.Tensor,
    tops: torch.Tensor,
    floors: torch.Tensor,
    picked: torch.Tensor,
    values: torch.Tensor,
    places: torch.Tensor,
    cursors: torch.Tensor,
    state: torch.Tensor,
    ids: torch.Tensor,
    width: hl.constexpr,
    slices: hl.constexpr,
    all_slices: hl.constexpr,
    all_units: hl.constexpr,
    all_classes: hl.constexpr,
    num_classes: hl.constexpr,
    most: hl.constexpr,
    gathered: hl.constexpr,
    programmatic: hl.constexpr,
) -> None:
    """The token of each row that keeps at most ``most`` or so, and what the others wait for.

    Args:
        picked: [M, most] int32, units; values, places: [M, most] float32 and int32, x of tokens and their ids: the
            row's own notes.
        cursors: [M] int32, set to 0 for ``collect``.
        state: [M, 8] float32, to be written.
        all_slices, all_units, all_classes: powers of two that are not below the numbers of a row.
    """
    num_tokens, vocab_size = logits.size()
    vocab_size = hl.specialize(vocab_size)
    num_units = (vocab_size + width - 1) // width
    for row in hl.grid(num_tokens):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        heat = temperature[row]
        divisor = divisor_of(heat)
        part = hl.arange(all_slices)
        slice_tops = hl.load(tops, [row, part], extra_mask=part < slices)
        top = torch.amax(torch.where(part < slices, slice_tops, -float("inf")), 0)
        unit = hl.arange(all_units)
        peak = torch.where(unit < num_units, hl.load(peaks, [row, unit], extra_mask=unit < num_units), -float("inf"))
        k = top_k[row]
        p = top_p[row]
        cursors[row] = 0
        wants_k = (k > 0) & (k < vocab_size)
        wants_p = p < 1
        least = top + torch.log(min_p[row])
        if heat == 0:
            leave_done(state, row)
            best = torch.amin(torch.where(peak == top, unit, num_units - 1), 0)
            lane = hl.arange(width)
            token = best * width + lane
            own = hl.load(logits, [row, token], extra_mask=token < vocab_size)
            at_best = torch.amin(torch.where((own == top) & (token < vocab_size), lane, width - 1), 0)
            ids[row] = torch.minimum(best * width + at_best, best * 0 + vocab_size - 1).to(torch.int64)
        else:
            of_slice = hl.load(tops, [row, unit % slices], extra_mask=unit < num_units)
            by_unit = hl.load(masses, [row, unit], extra_mask=unit < num_units)
            whole = torch.sum(torch.where(by_unit > 0, by_unit * torch.exp(of_slice - top), 0.0), 0)
            slot = hl.arange(all_classes)
            largest = hl.load(classes, [row, slot], extra_mask=slot < slices * num_classes)
            key = torch.where(slot < slices * num_classes, keys_of(largest), -2147483648)

            # A floor that so many classes reach, and not many more: it need not be the highest.
            wanted = torch.where(wants_k, torch.minimum(k, k * 0 + most // 2), k * 0 + most // 2).to(torch.float32)
            low = torch.amin(torch.where(slot < slices * num_classes, key, 2147483647), 0).to(torch.int64)
            high = keys_of(top).to(torch.int64) + 1
            enough = torch.sum((key >= low.to(torch.int32)).to(torch.float32), 0) >= wanted
            for _pass in hl.tile(torch.where(enough, 4, 0), block_size=1):
                step = torch.maximum((high - low) // 16, low * 0 + 1)
                pivot = (low + step * hl.arange(16)).to(torch.int32)
                reach = torch.sum((key[None, :] >= pivot[:, None]).to(torch.float32), 1)
                reached = torch.sum((reach >= wanted).to(torch.float32), 0).to(torch.int64)
                high = torch.where(reached == 16, high, torch.minimum(high, low + reached * step))
                low = low + (reached - 1) * step
            floor = values_of(low.to(torch.int32))
            floor = torch.where(enough, floor, -float("inf"))
            floor = torch.where(wants_k | wants_p, floor, least)

            is_picked = (peak >= floor) & (peak > -float("inf"))
            place = torch.cumsum(is_picked.to(torch.int32), 0) - 1
            num_picked = torch.sum(is_picked.to(torch.int32), 0, dtype=torch.int32)
            hl.store(picked, [row, place], unit, extra_mask=is_picked & (place < most))
            found = hl.zeros([], dtype=torch.int32)
            for tile_u in hl.tile(torch.where(num_picked <= most, num_picked, 0), block_size=gathered):
                index = picked[row, tile_u][:, None] * width + hl.arange(width)[None, :]
                is_there = (tile_u.index < num_picked)[:, None] & (index < vocab_size)
                read = hl.load(logits, [row, index], extra_mask=is_there) / divisor
                is_found = is_there & (read >= floor) & (read > -float("inf"))
                in_unit = torch.cumsum(is_found.to(torch.int32), 1)
                per_unit = torch.sum(is_found.to(torch.int32), 1, dtype=torch.int32)
                spot = found + (torch.cumsum(per_unit, 0) - per_unit)[:, None] + in_unit - 1
                hl.store(values, [row, spot], read, extra_mask=is_found & (spot < most))
                hl.store(places, [row, spot], index, extra_mask=is_found & (spot < most))
                found = found + torch.sum(per_unit, 0, dtype=torch.int32)
            num_found = torch.where((num_picked <= most) & (found <= most), found, 0)

            # Each token with each: how many are above it, and of what mass. Ids ascend, as their places do.
            solved = hl.zeros([], dtype=torch.int32)
            weight = hl.zeros([], dtype=torch.float32)
            for tile_i in hl.tile(num_found, block_size=most):
                is_real = tile_i.index < num_found
                x = torch.where(is_real, values[row, tile_i], -float("inf"))
                mass = mass_of(x, top)
                rank = hl.zeros([tile_i], dtype=torch.int32)
                above = hl.zeros([tile_i], dtype=torch.float32)
                for tile_j in hl.tile(num_found, block_size=width):
                    other = torch.where(tile_j.index < num_found, values[row, tile_j], -float("inf"))
                    is_above = other[None, :] > x[:, None]
                    rank = rank + torch.sum(is_above.to(torch.int32), 1, dtype=torch.int32)
                    above = above + torch.sum(torch.where(is_above, mass_of(other, top)[None, :], 0.0), 1)
                weight = torch.sum(mass, 0)
                is_kept = is_real & ((rank < k) | ~wants_k)
                goal = p * torch.where(wants_k, torch.sum(torch.where(is_kept, mass, 0.0), 0), whole)
                is_kept = is_kept & ((above < goal) | (rank == 0) | ~wants_p) & (x >= least)
                has_all = (floor == -float("inf")) | torch.where(wants_k, k <= most // 2, (weight >= goal) | ~wants_p)
                solved = torch.where(has_all, solved * 0 + 1, solved)
                mass = torch.where(is_kept, mass, 0.0)
                running = torch.cumsum(mass, 0)
                is_past = (running > uniform[row] * torch.sum(mass, 0)) & (mass > 0)
                past = torch.amin(torch.where(is_past, tile_i.index, most), 0)
                at_most = torch.amax(torch.where(mass > 0, tile_i.index, 0), 0)
                chosen = torch.minimum(past, at_most)
                place_of = torch.where(is_real, places[row, tile_i], 0)
                ids[row] = torch.sum(torch.where(tile_i.index == chosen, place_of, 0), 0).to(torch.int64)

            over = top + 1.0 + 1e-6 * torch.abs(top)
            lowest = torch.amin(
                torch.where(part < slices, hl.load(floors, [row, part], extra_mask=part < slices), top), 0
            )
            # Below this all tokens together have half of what may be left out, at most.
            tail = torch.where(wants_k, lowest, top + torch.log(0.5 * (1.0 - p) * whole / vocab_size))
            reached = torch.where(wants_k & (k <= most // 2), torch.maximum(floor, lowest), tail)
            low = torch.where(wants_k | wants_p, torch.maximum(reached, lowest), least)
            is_short = wants_p & ~wants_k & (num_found > 0)
            has_none = ~(wants_k | wants_p | (least > -float("inf")))
            high = torch.where(is_short, floor, over)
            goal = torch.where(wants_k, k.to(torch.float32), torch.maximum(p * whole, p * 0 + 1e-30))
            beyond = torch.where(is_short, weight, 0.0)
            phase = first_phase(solved == 1, wants_k, wants_p, has_none)
            leave_search(state, row, phase, low, high, goal, beyond)
            leave_row(state, row, top, least)
