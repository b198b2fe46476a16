"""The tile programs of ``top_k_top_p_sampling`` for rows that keep more tokens than can be compared each with each.

1. ``narrow``, a program a part of a row: the count or mass from each of some equally spaced pivots on, so that the
   bound lies between two of them. The last to arrive decides which; the next launch goes on there.
2. ``collect`` and ``settle``: what is left between the two, and a program a row that finds the bound among it exactly,
   by the keys of float32 numbers.
3. ``weigh``, a program a part of a row: the masses of what the bound keeps, by units of ``width`` neighbouring tokens.
   Then the last to arrive draws: the unit, then the token. So it does for rows that no filter touches, of the masses
   that are there already.

Rows that are done, or need no search, pass through. Sums are made in an order that nothing changes, or of integers.
"""

from __future__ import annotations

import helion
import helion.language as hl
import torch

from parhelion.ops.arrivals import arrived_last, forget_arrivals
from parhelion.ops.programmatic import start_successor, wait_for_predecessor
from parhelion.ops.sampling_search.numbers import (
    divisor_of,
    fixed,
    kept_mass,
    keys_of,
    mass_of,
    tally_from,
    values_of,
)
from parhelion.ops.sampling_search.state import (
    beyond_of,
    goal_of,
    has_bound,
    high_of,
    is_counted,
    is_drawn,
    is_searched,
    least_of,
    leave_known,
    leave_search,
    low_of,
    next_phase,
    phase_of,
    top_of,
    wants_all_above,
)


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
                    within = within + kept_mass(x, top, low, by_count)
                for tile_v in hl.tile(num_others * of_what):
                    x = torch.where(tile_v.index < vocab_size, logits[row, tile_v] / divisor, -float("inf"))
                    within = within + kept_mass(x, top, low, by_count)
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
                        tally = tally + tally_from(x, top, pivot, by_count)
                    for tile_v in hl.tile(num_others):
                        x = torch.where(tile_v.index < vocab_size, logits[row, tile_v] / divisor, -float("inf"))
                        tally = tally + tally_from(x, top, pivot, by_count)
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
    tile: hl.constexpr,
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
            for tile_u in hl.tile(torch.where(has_bound(phase), span, 0), block_size=tile):
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
