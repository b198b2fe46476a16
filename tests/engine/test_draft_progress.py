"""What a draft model computes before each step, by hand and against a simulation of whole runs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from parhelion.engine.drafts.progress import DraftProgress, HeadProgress, accepted_of
from parhelion.engine.step_layout import StepRows

BLOCK = 4
TABLE = np.arange(40).reshape(4, 10)


def rows_of(*rows: tuple[int, int, int, int]) -> StepRows:
    """Rows (slot, start, count, samples); the first output is the token at position 5."""
    table = np.array([(*row, row[1] + row[2] - row[3] + 1 - 5) for row in rows], np.int64).reshape(-1, 5)
    return StepRows(*table.T.copy())


def listed(passes: Sequence[StepRows]) -> list[list[tuple[int, int, int, int]]]:
    return [
        list(zip(each.slots.tolist(), each.starts.tolist(), each.counts.tolist(), each.samples.tolist(), strict=True))
        for each in passes
    ]


def progress_of(budget: int = 64, behind: int = 0) -> DraftProgress:
    progress = DraftProgress(*TABLE.shape, TABLE.size, BLOCK, budget, behind)
    for slot in range(4):
        progress.append(slot, 0, TABLE[slot, :3], 0)
    return progress


def step(progress: DraftProgress, rows: StepRows, accepted: Sequence[int]) -> list[list[tuple[int, int, int, int]]]:
    passes = listed(list(progress.passes(rows)))
    guessed, chosen = [], []
    for samples, right in zip(rows.samples.tolist(), accepted, strict=True):
        guessed += [7] * (samples - 1)
        chosen += [7 if sample < right else 8 for sample in range(samples)]
    progress.follow(rows)
    progress.settle(rows, accepted_of(rows, guessed, np.array(chosen)))
    return passes


def test_a_request_is_caught_up_on_and_guessed_for_one_token_after_another() -> None:
    progress = progress_of()
    # A prompt's first chunk: nothing to follow yet; its second: the first one is followed.
    assert step(progress, rows_of((0, 0, 5, 0)), [0]) == []
    assert step(progress, rows_of((0, 5, 2, 1)), [0]) == [[(0, 0, 5, 0)]]
    # Three guesses behind the token at 7: one is right, so positions 7 and 8 are computed.
    assert step(progress, rows_of((0, 7, 4, 4)), [1]) == [[(0, 5, 3, 1)], [(0, 8, 1, 1)], [(0, 9, 1, 1)]]
    assert progress.computed[0] == 9
    # All right: of the three, the last one was never computed.
    assert step(progress, rows_of((0, 9, 4, 4)), [3]) == [[(0, 9, 1, 1)], [(0, 10, 1, 1)], [(0, 11, 1, 1)]]
    assert step(progress, rows_of((0, 13, 2, 2)), [0]) == [[(0, 12, 2, 1)]]
    assert progress.computed[0] == 14


def test_rows_that_want_fewer_guesses_leave_earlier_and_others_are_left_alone() -> None:
    progress = progress_of()
    rows = rows_of((0, 6, 3, 3), (1, 6, 2, 2), (2, 6, 1, 1))
    assert step(progress, rows, [0, 1, 0]) == [[(0, 0, 7, 1), (1, 0, 7, 1)], [(0, 7, 1, 1)]]
    assert progress.computed.tolist() == [7, 7, 0, 0]


def test_a_head_stays_one_token_behind_and_computes_again_what_it_guessed() -> None:
    progress = progress_of(behind=1)
    assert step(progress, rows_of((0, 0, 6, 1)), [0]) == []
    assert step(progress, rows_of((0, 6, 3, 3)), [2]) == [[(0, 0, 6, 1)], [(0, 6, 1, 1)]]
    assert progress.computed[0] == 6
    assert step(progress, rows_of((0, 9, 3, 3)), [0]) == [[(0, 6, 3, 1)], [(0, 9, 1, 1)]]
    assert step(progress, rows_of((0, 10, 2, 2)), [0]) == [[(0, 9, 1, 1)]]


def test_rows_that_only_decode_catch_up_once_they_lag_by_as_much_as_they_may() -> None:
    patient, prompt = progress_of(), DraftProgress(*TABLE.shape, TABLE.size, BLOCK, 64, behind=1, most_lag=2)
    for start in (1, 2, 3, 4):
        rows = rows_of((0, start, 1, 1))
        assert step(patient, rows, [0]) == []
        assert step(prompt, rows, [0]) == ([[(0, start - 2, 2, 0)]] if start % 2 == 0 else [])


@pytest.mark.parametrize("budget", [4, 5, 7, 9])
def test_what_is_lacking_is_computed_in_passes_of_the_budgets_size(budget: int) -> None:
    progress = progress_of(budget)
    rows = rows_of((0, 10, 3, 3), (1, 3, 2, 2), (2, 7, 2, 2), (3, 5, 2, 0))
    passes = list(progress.passes(rows))
    assert all(int(each.counts.sum()) <= budget for each in passes)
    *catching_up, last, second = listed(passes)
    assert not any(samples for each in catching_up for *_, samples in each)
    assert [(slot, samples) for slot, _, _, samples in last if samples] == [(0, 1), (1, 1), (2, 1)]
    assert second == [(0, 11, 1, 1)]
    computed = {
        slot: sorted(
            position
            for each in listed(passes[:-1])
            for other, start, count, _ in each
            if other == slot
            for position in range(start, start + count)
        )
        for slot in range(4)
    }
    assert computed == {0: list(range(11)), 1: list(range(4)), 2: list(range(8)), 3: list(range(5))}


def test_a_cached_prefix_counts_as_far_as_its_blocks_were_filled() -> None:
    progress = progress_of()
    step(progress, rows_of((0, 10, 2, 2)), [0])
    # Two blocks are full, the third is not.
    progress.append(1, 0, np.array([*TABLE[0, :3], 30]), 3 * BLOCK)
    assert progress.computed[1] == 2 * BLOCK
    # A block that was given away holds nothing of use.
    progress.append(2, 3, TABLE[0, 1:2])
    progress.append(1, 0, np.array([*TABLE[0, :3], 30]), 3 * BLOCK)
    assert progress.computed[1] == BLOCK


def late_rows(*rows: tuple[int, int, int, int, int]) -> StepRows:
    """Rows (slot, start, count, samples, unchecked), ``rows_of`` bounds."""
    known = rows_of(*(row[:4] for row in rows))
    return msgspec.structs.replace(known, unchecked=np.array([row[4] for row in rows]))


def handed_over(progress: DraftProgress, rows: StepRows) -> list[StepRows]:
    passes = list(progress.passes(rows))
    progress.follow(rows)
    return passes


def unchecked(each: StepRows) -> list[int]:
    assert each.unchecked is not None
    return each.unchecked.tolist()


def test_behind_unchecked_guesses_a_draft_model_computes_two_tokens_wherever_they_are() -> None:
    progress = progress_of()
    first = rows_of((0, 6, 4, 4), (1, 6, 1, 1))
    handed_over(progress, first)
    second = late_rows((0, 10, 3, 3, 3), (1, 7, 3, 3, 0))
    passes = handed_over(progress, second)
    assert listed(passes) == [[(0, 9, 2, 1), (1, 0, 8, 1)], [(0, 11, 1, 1), (1, 8, 1, 1)]]
    assert [unchecked(each) for each in passes] == [[3, 0], [3, 0]]
    # One of three was right: it has computed the tokens up to that at 8, where the second row began.
    progress.settle(first, np.array([1, 0]))
    assert progress.computed[:2].tolist() == [9, 8]
    assert listed(handed_over(progress, late_rows((0, 11, 2, 2, 2), (1, 10, 1, 1, 2)))) == [[(0, 10, 2, 1)]]
    progress.settle(second, np.array([2, 0]))
    # Slot 1 had no guesses, so that nothing was computed for it.
    assert progress.computed[:2].tolist() == [12, 8]


@pytest.mark.parametrize("accepted", range(4))
def test_behind_unchecked_guesses_a_head_computes_all_tokens_and_samples_at_one(accepted: int) -> None:
    progress = HeadProgress(*TABLE.shape, TABLE.size, BLOCK, 64, forgets=True)
    for slot in range(4):
        progress.append(slot, 0, TABLE[slot, :5], 0)
    handed_over(progress, rows_of((0, 0, 6, 1), (1, 0, 6, 1)))
    first = rows_of((0, 6, 4, 4), (1, 6, 1, 1))
    handed_over(progress, first)
    second = late_rows((0, 10, 3, 3, 3), (1, 7, 3, 3, 0))
    passes = handed_over(progress, second)
    window = [(0, position, 1, 1) for position in range(6, 10)]
    assert listed(passes) == [[*window, (1, 6, 1, 1)], [(0, 10, 1, 1), (1, 7, 1, 1)]]
    assert [unchecked(each) for each in passes] == [[-4, -3, -2, -1, 0], [3, 0]]
    # Behind the token at 6, which is the second output, the third is guessed if the next one is the row's first.
    assert passes[0].output_indices.tolist() == [3, 4, 5, 6, 3]
    progress.settle(first, np.array([accepted, 0]))
    start = 7 + accepted
    assert progress.computed[:2].tolist() == [start, 7]
    assert progress.has_features(late_rows((0, start + 3, 1, 1, 2), (1, 10, 1, 1, 2))).tolist() == [True, True]
    third = late_rows((0, start + 3, 1, 1, 2), (1, 10, 1, 1, 2))
    assert listed(handed_over(progress, third)) == [
        [(slot, position, 1, 0) for slot, first in ((0, start), (1, 7)) for position in range(first, first + 3)]
    ]
    progress.settle(second, np.array([0, 2]))
    assert progress.computed[:2].tolist() == [start + 1, 10]


def test_a_head_without_features_makes_do_with_the_last_token_wherever_it_is() -> None:
    progress = HeadProgress(*TABLE.shape, TABLE.size, BLOCK, 64, forgets=True)
    progress.append(0, 0, TABLE[0, :5], 0)
    first = rows_of((0, 6, 4, 4))
    handed_over(progress, first)
    progress.lose()
    [each] = handed_over(progress, late_rows((0, 10, 2, 2, 3)))
    assert listed([each]) == [[(0, 9, 1, 1)]]
    assert unchecked(each) == [3]
    progress.settle(first, np.array([1]))
    assert progress.computed[0] == 8


@pytest.mark.parametrize("budget", [5, 7, 9])
def test_rows_at_bounds_share_passes_of_the_budgets_size(budget: int) -> None:
    progress = HeadProgress(*TABLE.shape, TABLE.size, BLOCK, budget, forgets=True)
    for slot in range(4):
        progress.append(slot, 0, TABLE[slot, :5], 0)
    handed_over(progress, rows_of(*((slot, 5, 4, 4) for slot in range(3))))
    passes = handed_over(progress, late_rows(*((slot, 9, 2, 2, 3) for slot in range(3)), (3, 12, 4, 0, 0)))
    assert all(int(each.counts.sum()) <= budget for each in passes)
    tokens = [
        (slot, position)
        for each in listed(passes)
        for slot, start, count, _ in each
        for position in range(start, start + count)
    ]
    assert sorted(tokens) == sorted((slot, position) for slot in range(3) for position in range(5, 9))
    # All rows of a slot are in one pass, since any of them may sample.
    assert sum(len(set(each.slots.tolist())) for each in passes) == 3


def test_whoever_takes_a_slot_is_not_put_right_by_the_guesses_of_the_one_before() -> None:
    progress = progress_of()
    first = rows_of((0, 6, 4, 4))
    handed_over(progress, first)
    stays = progress.stays[first.slots]
    progress.append(0, 0, np.array([20, 21]), 0)
    handed_over(progress, rows_of((0, 4, 2, 2)))
    progress.settle(first, np.array([0]), stays)
    assert progress.computed[0] == 5


def test_a_block_that_was_given_away_is_not_filled_by_the_one_who_had_it() -> None:
    progress = progress_of()
    first = rows_of((0, 6, 3, 3))
    handed_over(progress, first)
    # Slot 0 is free by now, and its second block another's, who leaves it in the cache with what the target wrote.
    progress.append(1, 3, TABLE[0, 1:2])
    progress.settle(first, np.array([2]))
    progress.append(2, 0, TABLE[0, :2], 2 * BLOCK)
    assert progress.computed[2] == BLOCK
