"""What a draft model computes before each step, by hand and against a simulation of whole runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from parhelion.engine.drafts.progress import DraftProgress, accepted_of
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
