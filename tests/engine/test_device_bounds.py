"""Rows that are planned before it is known how many guesses were wrong: the device puts them where they belong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from parhelion.engine.device.bounds import choose_samples, count_wrong, read_ints
from parhelion.engine.step_layout import Bucket, StepInts, StepRows, guesses_apart, num_ints, pack, tokens_apart

SPARE_SLOT, SPARE_POSITION = 5, 50
BUCKETS = {
    "decoding": Bucket.decoding(4, at_bounds=True),
    "verifying": Bucket.verifying(16, 4, at_bounds=True),
    "mixed": Bucket(16, 32, at_bounds=True),
}
PLACES = ("seq_lens", "sample_position", "output_index")


def step_rows(*rows: tuple[int, int, int, int, int, int]) -> StepRows:
    """Of slot, start, tokens, samples, output index and unchecked guesses."""
    return StepRows(*np.array(rows, np.int64).T.copy())


def packed(rows: StepRows, bucket: Bucket) -> torch.Tensor:
    """At the front of a buffer that held something else."""
    buffer = np.full(400, 77, np.int32)
    assert pack(rows, bucket, buffer, SPARE_SLOT, SPARE_POSITION) == num_ints(bucket)
    return torch.from_numpy(buffer)


def read(rows: StepRows, bucket: Bucket, *num_wrong: int) -> StepInts:
    return read_ints(packed(rows, bucket), bucket, torch.tensor([*num_wrong, 9], dtype=torch.int32))


@pytest.mark.parametrize("kind", BUCKETS)
def test_rows_are_read_as_if_they_had_been_planned_where_they_belong(kind: str) -> None:
    """Slot 0 had two wrong guesses of three, slot 2 none of two; slots 1 and 4 are known whatever was wrong before."""
    num_guesses = 0 if kind == "decoding" else 2
    one, several = (1, 1), (1 + num_guesses, 1 + num_guesses)
    prompt = [(4, 8, 6, 1, 0, 0)] if kind == "mixed" else []
    late = step_rows((0, 20, *several, 7, 3), (2, 30, *several, 9, 2), (1, 10, *one, 2, 0), *prompt)
    exact = step_rows((0, 18, *several, 5, 0), (2, 30, *several, 9, 0), (1, 10, *one, 2, 0), *prompt)
    bucket = BUCKETS[kind]
    got = read(guesses_apart(late), bucket, 2, 1, 0, 0, 3)
    expected = read(guesses_apart(exact), bucket, 0, 0, 0, 0, 0)
    for field in ("row_slot", "query_start_loc", "sample_token", *PLACES, "token_position", "token_row"):
        assert getattr(got, field).tolist() == getattr(expected, field).tolist(), field


def test_a_row_of_two_tokens_moves_as_a_whole() -> None:
    ints = read(step_rows((0, 20, 2, 1, 7, 3), (4, 8, 6, 0, 0, 0)), BUCKETS["mixed"], 2, 0, 0, 0, 1)
    assert ints.token_position[:8].tolist() == [18, 19, 8, 9, 10, 11, 12, 13]
    assert ints.seq_lens[:2].tolist() == [20, 14]
    assert ints.sample_position[:2].tolist() == [20, SPARE_POSITION]


def test_steps_of_other_buckets_have_no_bounds() -> None:
    known = step_rows((0, 20, 1, 1, 7, 0))
    bucket = Bucket.decoding(4)
    assert num_ints(BUCKETS["decoding"]) == num_ints(bucket) + 3 * 4
    with pytest.raises(AssertionError, match="have bounds"):
        pack(known, bucket, np.zeros(100, np.int32), SPARE_SLOT, SPARE_POSITION)


@pytest.mark.parametrize("wrong", range(4))
def test_of_a_heads_rows_the_one_behind_the_last_right_guess_samples(wrong: int) -> None:
    """Slot 1's step had three guesses behind the token at 20; slot 0 is known to sample behind that at 9."""
    window = StepRows(
        np.array([1, 1, 1, 1]),
        np.arange(20, 24),
        np.ones(4, np.int64),
        np.ones(4, np.int64),
        np.arange(6, 10),
        np.array([-4, -3, -2, -1]),
    )
    known = tokens_apart(step_rows((0, 8, 2, 1, 3, 0)))
    rows = StepRows(
        *(
            np.concatenate((getattr(window, field), getattr(known, field)))
            for field in ("slots", "starts", "counts", "samples", "output_indices", "unchecked")
        )
    )
    num_wrong = torch.tensor([3, wrong, 0, 0, 0, 9], dtype=torch.int32)
    bucket = BUCKETS["verifying"]
    ints = choose_samples(read_ints(packed(rows, bucket), bucket, num_wrong), num_wrong, SPARE_POSITION)
    expected = [SPARE_POSITION] * 4
    expected[3 - wrong] = 24 - wrong
    assert ints.sample_position.tolist()[:6] == [*expected, SPARE_POSITION, 10]
    assert ints.output_index.tolist()[:4] == [6, 7, 8, 9]
    assert ints.token_position.tolist()[:6] == [20, 21, 22, 23, 8, 9]
    assert ints.sample_position.tolist()[6:] == [SPARE_POSITION] * 10


@pytest.mark.parametrize("kind", ["verifying", "mixed"])
def test_guesses_count_as_wrong_from_the_first_one_that_was_not_sampled(kind: str) -> None:
    rows = guesses_apart(
        step_rows((3, 9, 4, 4, 0, 0), (0, 5, 1, 1, 0, 0), (1, 20, 3, 3, 0, 0), (2, 7, 2, 2, 0, 0), (4, 3, 3, 3, 0, 0))
    )
    ints = read(rows, BUCKETS[kind], 0, 0, 0, 0, 0)
    checked = torch.tensor([5, 10, 11, 12, 5, 5, 20, 21, 5, 30, 5, 40, 40])
    # Of slot 3 the second is wrong, and the third would be right; of 1 none, of 2 the only one, of 4 the last.
    sampled = torch.tensor([10, 99, 12, 1, 1, 20, 21, 1, 31, 1, 40, 41, 1])
    padding = torch.zeros(16 - len(checked), dtype=torch.int64)
    num_wrong = torch.full((6,), 7, dtype=torch.int32)
    count_wrong(num_wrong, ints, torch.cat((checked, padding)), torch.cat((sampled, padding + 3)))
    assert num_wrong.tolist()[:5] == [0, 0, 1, 2, 1]


def test_a_step_of_one_row_checks_nothing() -> None:
    bucket = Bucket(1, 8, at_bounds=True)
    num_wrong = torch.full((6,), 7, dtype=torch.int32)
    ints = read(step_rows((3, 0, 5, 1, 0, 0)), bucket, 0, 0, 0, 0, 0)
    count_wrong(num_wrong, ints, torch.tensor([4]), torch.tensor([5]))
    assert num_wrong.tolist() == [7] * 6
