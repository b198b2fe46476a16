"""``top_k_top_p_sampling`` as tile programs that read the logits once where a row keeps few tokens, as most do.

A row is cut into units of ``width`` neighbouring tokens, and its units are dealt out to slices like cards.

1. ``scan``, a program a slice: each unit's largest x and its mass; the largest of each of the slice's classes, which
   spread a row's likely tokens evenly wherever they stand.
2. ``resolve``, a program a row: the j-th largest of the classes is a floor that at least j tokens reach, and few more.
   The units that reach it hold all of these tokens. They are compared with one another, each with each, which gives
   their ranks and the masses above them without a sort. If the row keeps no others, that is its token.
3. ``narrow``, a program a part of a row, for rows that keep more: the count or mass from each of some equally spaced
   pivots on, so that the bound lies between two of them. The last to arrive decides which; the next launch goes on.
4. ``settle``, a program a row, where a bound is still not exact: halves what is left among the keys of float32 numbers.
5. ``weigh``, a program a part of a row: the units' masses of what the bound keeps. Then the last to arrive draws: the
   unit, then the token. So it does for rows that no filter touches, of the masses that ``scan`` has made.

Rows that are done, or need no search, pass through 3, 4 and 5. Sums are made in an order that nothing changes.
"""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.arrivals import arrived_last, forget_arrivals
from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.top_k_top_p_sampling.state import (
    beyond_of,
    first_phase,
    goal_of,
    has_bound,
    high_of,
    is_counted,
    is_drawn,
    is_searched,
    least_of,
    leave_done,
    leave_known,
    leave_row,
    leave_search,
    low_of,
    next_phase,
    phase_of,
    top_of,
    wants_all_above,
)


def keys_of(x: torch.Tensor) -> torch.Tensor:
    """int32 keys in the order of float32 values; both zeros are 0, and no number has the least key."""
    bits = torch.where(x == 0, 0.0, x).view(torch.int32)
    return torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


def values_of(keys: torch.Tensor) -> torch.Tensor:
    """The float32 values of keys."""
    return torch.where(keys >= 0, keys, keys ^ 0x7FFFFFFF).view(torch.float32)


def divisor_of(heat: torch.Tensor) -> torch.Tensor:
    """Of a row's logits; greedy rows, whose temperature is 0, are left as they are."""
    return torch.where(heat == 0, 1.0, heat)


def fixed(weight: torch.Tensor, by_count: torch.Tensor) -> torch.Tensor:
    """Counts as they are and masses, none of which is above 1, in units of 2**-40: int64 sums of both are exact."""
    return (weight * torch.where(by_count == 1, 1.0, 2.0**40)).to(torch.int64)


def mass_of(x: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """exp(x - top), and 0 for hidden tokens even where all are."""
    return torch.where(x > -float("inf"), torch.exp(x - top), 0.0)


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


@helion.kernel(static_shapes=False)
def narrow(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    state: torch.Tensor,
    tallies: torch.Tensor,
    ends: torch.Tensor,
    arrivals: torch.Tensor,
    parts: hl.constexpr,
    all_parts: hl.constexpr,
    span: hl.constexpr,
    pivots: hl.constexpr,
    lanes: hl.constexpr,
    programmatic: hl.constexpr,
) -> None:
    """Of each row that is searched, which ``pivots``-th part of [LOW, HIGH) the bound is in.

    Args:
        tallies: [M, parts * pivots] float32, how many tokens, or what mass, a program has from each pivot on.
        ends: [M, parts * 2] float32, its smallest and largest x in [LOW, HIGH).
        arrivals: int32, a counter for each row; see ``ops/arrivals.py``.
        span: tokens of a program, ``lanes`` at a time, of which it is a multiple.
        all_parts: a power of two that is not below ``parts``; ``pivots`` is one itself.
    """
    num_tokens, vocab_size = logits.size()
    vocab_size = hl.specialize(vocab_size)
    for row, part in hl.grid([num_tokens, parts]):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        phase = phase_of(state, row)
        if is_searched(phase):
            divisor = divisor_of(temperature[row])
            low = low_of(state, row)
            high = high_of(state, row)
            top = top_of(state, row)
            counts = is_counted(phase)
            column = hl.arange(pivots)
            pivot = low + (high - low) * (column.to(torch.float32) * (1.0 / pivots))
            tally = hl.zeros([pivots, lanes], dtype=torch.float32)
            least = hl.full([lanes], float("inf"), dtype=torch.float32)
            largest = hl.full([lanes], -float("inf"), dtype=torch.float32)
            for step in hl.tile(span // lanes, block_size=1):
                token = part * span + step.begin * lanes + hl.arange(lanes)
                x = hl.load(logits, [row, token], extra_mask=token < vocab_size) / divisor
                x = torch.where(token < vocab_size, x, -float("inf"))
                weight = torch.where(counts, 1.0, mass_of(x, top))
                tally = tally + torch.where(x[None, :] >= pivot[:, None], weight[None, :], 0.0)
                is_inside = (x >= low) & (x < high)
                least = torch.minimum(least, torch.where(is_inside, x, float("inf")))
                largest = torch.maximum(largest, torch.where(is_inside, x, -float("inf")))
            hl.store(tallies, [row, part * pivots + column], torch.sum(tally, 1))
            ends[row, part * 2] = torch.amin(least, 0)
            ends[row, part * 2 + 1] = torch.amax(largest, 0)
            if arrived_last(arrivals, row, parts):
                of_part = hl.arange(all_parts)
                entry = of_part[:, None] * pivots + column[None, :]
                whole = torch.sum(hl.load(tallies, [row, entry], extra_mask=entry < parts * pivots), 0)
                is_part = of_part < parts
                lows = hl.load(ends, [row, of_part * 2], extra_mask=is_part)
                highs = hl.load(ends, [row, of_part * 2 + 1], extra_mask=is_part)
                first = torch.amin(torch.where(is_part, lows, float("inf")), 0)
                last = torch.amax(torch.where(is_part, highs, -float("inf")), 0)
                goal = goal_of(state, row)
                goal = torch.where(goal < 0, -goal * torch.sum(torch.where(column == 0, whole, 0.0), 0), goal)
                reached = torch.sum((whole >= goal).to(torch.float32), 0).to(torch.int32)
                at_low = column == torch.maximum(reached, reached * 0 + 1) - 1
                at_high = column == reached
                has_high = reached < pivots
                new_low = torch.sum(torch.where(at_low, pivot, 0.0), 0)
                new_high = torch.where(has_high, torch.sum(torch.where(at_high, pivot, 0.0), 0), high)
                beyond = torch.where(has_high, torch.sum(torch.where(at_high, whole, 0.0), 0), beyond_of(state, row))
                # At most one token is left, or one value, or not even the lowest reaches the goal: all are kept.
                inside = torch.sum(torch.where(at_low, whole, 0.0), 0) - beyond
                of_one = torch.where(counts, 1.0, torch.exp(new_low - top))
                is_settled = (inside < 1.5 * of_one) | (first >= last) | (reached == 0)
                p = top_p[row]
                goes_on = is_settled & counts & (p < 1)
                over = top + 1.0 + 1e-6 * torch.abs(top)
                leave_search(
                    state,
                    row,
                    next_phase(phase, is_settled, goes_on),
                    torch.where(is_settled & ~goes_on, torch.maximum(new_low, least_of(state, row)), new_low),
                    torch.where(goes_on, over, new_high),
                    torch.where(goes_on, -torch.maximum(p, p * 0 + 1e-30), goal),
                    torch.where(goes_on, 0.0, beyond),
                )
                forget_arrivals(arrivals, row)


@helion.kernel(static_shapes=False)
def collect(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    state: torch.Tensor,
    collected: torch.Tensor,
    cursors: torch.Tensor,
    parts: hl.constexpr,
    span: hl.constexpr,
    lanes: hl.constexpr,
    most: hl.constexpr,
    programmatic: hl.constexpr,
) -> None:
    """The x of each row that is searched in [LOW, HIGH), or from LOW on if a nucleus of all of those is wanted.

    Args:
        collected: [M, most] float32, to be written, in any order.
        cursors: [M] int32, how many there are; 0 before. If there are more than ``most`` the others are left out.
        span: tokens of a program, ``lanes`` at a time, of which it is a multiple.
    """
    num_tokens, vocab_size = logits.size()
    vocab_size = hl.specialize(vocab_size)
    for row, part in hl.grid([num_tokens, parts]):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        phase = phase_of(state, row)
        if is_searched(phase):
            divisor = divisor_of(temperature[row])
            low = low_of(state, row)
            high = torch.where(
                wants_all_above(phase, goal_of(state, row), top_p[row]), float("inf"), high_of(state, row)
            )
            for step in hl.tile(span // lanes, block_size=1):
                token = part * span + step.begin * lanes + hl.arange(lanes)
                x = hl.load(logits, [row, token], extra_mask=token < vocab_size) / divisor
                is_inside = (token < vocab_size) & (x >= low) & (x < high)
                count = torch.sum(is_inside.to(torch.int32), 0, dtype=torch.int32)
                place = hl.atomic_add(cursors, [row], count) + torch.cumsum(is_inside.to(torch.int32), 0) - 1
                hl.store(collected, [row, place], x, extra_mask=is_inside & (place < most))


@helion.kernel(static_shapes=False)
def settle(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    state: torch.Tensor,
    collected: torch.Tensor,
    cursors: torch.Tensor,
    most: hl.constexpr,
    programmatic: hl.constexpr,
) -> None:
    """The bound of each row that is still searched, exactly: among what is collected of it, or among all if that is
    more than there was room for. Masses are added up as integers: what is collected comes in any order.
    """
    num_tokens, vocab_size = logits.size()
    vocab_size = hl.specialize(vocab_size)
    for row in hl.grid(num_tokens):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        phase = phase_of(state, row)
        if is_searched(phase):
            divisor = divisor_of(temperature[row])
            p = top_p[row]
            top = top_of(state, row)
            goal = goal_of(state, row)
            num_collected = cursors[row]
            is_whole = num_collected > most
            num_collected = torch.where(is_whole, 0, num_collected)
            num_others = torch.where(is_whole, vocab_size, 0)
            by_count = is_counted(phase).to(torch.int32)
            counts_all = is_whole | wants_all_above(phase, goal, p)
            beyond = torch.where(counts_all, 0, fixed(beyond_of(state, row), by_count))
            # Of 64 bits, so that differences fit.
            low = keys_of(low_of(state, row)).to(torch.int64)
            high = keys_of(high_of(state, row)).to(torch.int64)
            for _search in hl.tile(torch.where((by_count == 1) & (p < 1), 2, 1), block_size=1):
                # A nucleus of what the lowest key keeps: its mass comes first.
                of_what = torch.where(goal < 0, 1, 0)
                within = hl.zeros([], dtype=torch.int64)
                for tile_c in hl.tile(num_collected * of_what):
                    x = torch.where(tile_c.index < num_collected, collected[row, tile_c], -float("inf"))
                    is_kept = keys_of(x) >= low.to(torch.int32)
                    within = within + torch.sum(torch.where(is_kept, fixed(mass_of(x, top), by_count), 0), 0)
                for tile_v in hl.tile(num_others * of_what):
                    x = torch.where(tile_v.index < vocab_size, logits[row, tile_v] / divisor, -float("inf"))
                    is_kept = keys_of(x) >= low.to(torch.int32)
                    within = within + torch.sum(torch.where(is_kept, fixed(mass_of(x, top), by_count), 0), 0)
                share = torch.where(goal < 0, -goal * within.to(torch.float32), fixed(goal, by_count).to(torch.float32))
                share = torch.maximum(share, share * 0 + 1.0)
                num_passes = by_count * 0
                for power in hl.static_range(17):
                    num_passes = num_passes + (high - low > 4**power).to(torch.int32)
                for _pass in hl.tile(num_passes, block_size=1):
                    step = (high - low + 3) // 4
                    pivot = torch.minimum(low + step * hl.arange(4), high - 1).to(torch.int32)
                    tally = hl.zeros([4], dtype=torch.int64) + beyond
                    for tile_c in hl.tile(num_collected):
                        x = torch.where(tile_c.index < num_collected, collected[row, tile_c], -float("inf"))
                        weight = torch.where(by_count == 1, 1.0, mass_of(x, top))
                        is_from = keys_of(x)[None, :] >= pivot[:, None]
                        tally = tally + torch.sum(torch.where(is_from, fixed(weight, by_count)[None, :], 0), 1)
                    for tile_v in hl.tile(num_others):
                        x = torch.where(tile_v.index < vocab_size, logits[row, tile_v] / divisor, -float("inf"))
                        weight = torch.where(by_count == 1, 1.0, mass_of(x, top))
                        is_from = keys_of(x)[None, :] >= pivot[:, None]
                        tally = tally + torch.sum(torch.where(is_from, fixed(weight, by_count)[None, :], 0), 1)
                    # The lowest reaches the goal, or the search would have ended.
                    reached = torch.sum((tally.to(torch.float32) >= share).to(torch.float32), 0).to(torch.int64)
                    reached = torch.maximum(reached, reached * 0 + 1)
                    new_low = torch.minimum(low + (reached - 1) * step, high - 1)
                    high = torch.where(reached == 4, high, torch.minimum(high, low + reached * step))
                    low = new_low
                # Where the k-th largest is known, the nucleus of what it leaves comes next.
                goal = goal * 0 - torch.maximum(p, p * 0 + 1e-30)
                high = keys_of(top).to(torch.int64) + 1
                beyond = beyond * 0
                by_count = by_count * 0
            leave_known(state, row, torch.maximum(values_of(low.to(torch.int32)), least_of(state, row)))


@helion.kernel(static_shapes=False)
def weigh(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    uniform: torch.Tensor,
    masses: torch.Tensor,
    tops: torch.Tensor,
    state: torch.Tensor,
    arrivals: torch.Tensor,
    ids: torch.Tensor,
    width: hl.constexpr,
    slices: hl.constexpr,
    all_units: hl.constexpr,
    parts: hl.constexpr,
    span: hl.constexpr,
    programmatic: hl.constexpr,
) -> None:
    """The tokens of rows whose bound is known, or that have none."""
    num_tokens, vocab_size = logits.size()
    vocab_size = hl.specialize(vocab_size)
    num_units = (vocab_size + width - 1) // width
    for row, part in hl.grid([num_tokens, parts]):
        start_successor(programmatic)
        wait_for_predecessor(programmatic)
        phase = phase_of(state, row)
        if is_drawn(phase):
            divisor = divisor_of(temperature[row])
            bound = torch.where(has_bound(phase), low_of(state, row), -float("inf"))
            top = top_of(state, row)
            for tile_u in hl.tile(torch.where(has_bound(phase), span, 0), block_size=64):
                unit = part * span + tile_u.index
                index = unit[:, None] * width + hl.arange(width)[None, :]
                is_there = (index < vocab_size) & (tile_u.index < span)[:, None]
                x = hl.load(logits, [row, index], extra_mask=is_there) / divisor
                mass = torch.where(is_there & (x >= bound), mass_of(x, top), 0.0)
                hl.store(masses, [row, unit], torch.sum(mass, 1), extra_mask=(unit < num_units) & (tile_u.index < span))
            if arrived_last(arrivals, row, parts):
                every = hl.arange(all_units)
                is_unit = every < num_units
                of_slice = hl.load(tops, [row, every % slices], extra_mask=is_unit)
                by_unit = hl.load(masses, [row, every], extra_mask=is_unit)
                scale = torch.where(has_bound(phase), 1.0, torch.exp(of_slice - top))
                by_unit = torch.where(is_unit & (by_unit > 0), by_unit * scale, 0.0)
                target = uniform[row] * torch.sum(by_unit, 0)
                running = torch.cumsum(by_unit, 0)
                is_past = (running > target) & (by_unit > 0)
                # Rounding may push the number to the very end: stay on a token of positive mass.
                at_most = torch.amax(torch.where(by_unit > 0, every, 0), 0)
                chosen = torch.minimum(torch.amin(torch.where(is_past, every, all_units), 0), at_most)
                before = torch.sum(torch.where(every == chosen - 1, running, 0.0), 0)
                lane = hl.arange(width)
                token = chosen * width + lane
                own = hl.load(logits, [row, token], extra_mask=token < vocab_size) / divisor
                by_lane = torch.where((token < vocab_size) & (own >= bound), mass_of(own, top), 0.0)
                is_hit = (before + torch.cumsum(by_lane, 0) > target) & (by_lane > 0)
                at_most = torch.amax(torch.where(by_lane > 0, lane, 0), 0)
                drawn = torch.minimum(torch.amin(torch.where(is_hit, lane, width), 0), at_most)
                ids[row] = (chosen * width + drawn).to(torch.int64)
                forget_arrivals(arrivals, row)
