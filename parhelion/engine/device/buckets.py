"""Which sizes a device's steps are padded to."""

from __future__ import annotations

from typing import Literal

import numpy as np

from parhelion.engine.step_layout import Bucket, StepRows, buckets_up_to, pad_to

ENTRIES_A_ROW = 2
"""Entries of tables that a step's integers have room for, for each row: a guess or a token of a stage before, and a
block, which rows need now and then.
"""

MIXED_ROWS = (1, 4, 16, 64)
"""Rows that steps with prompts in them are padded to, below the most that may run; with guesses there is one size more,
of all that may run with all their guesses."""


class Buckets:
    """The buckets of a worker.

    Args:
        max_num_seqs: slots.
        max_num_batched_tokens: tokens of the largest step.
        num_guesses: that a row may check; 0: nobody guesses.
        at_bounds: which of them are ``Bucket.at_bounds``: those of steps that check guesses or have prompts in them,
            those of steps that decode too, or none.
        brings_guesses: steps bring the guesses that they check; else these are on the device already.

    Attributes:
        largest: no step needs more.
        most_tokens: of any bucket.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        num_guesses: int,
        at_bounds: Literal["none", "checks", "all"] = "none",
        brings_guesses: bool = False,
    ) -> None:
        max_num_rows = max(max_num_seqs, min(max_num_seqs * (1 + num_guesses), max_num_batched_tokens))
        self._checks_at_bounds, self._decodes_at_bounds = at_bounds != "none", at_bounds == "all"
        self._entries_a_row = ENTRIES_A_ROW if brings_guesses else 0
        self.largest = Bucket(
            max_num_rows,
            max_num_batched_tokens,
            at_bounds=self._checks_at_bounds,
            entries=self._entries_a_row * max_num_rows,
        )
        self.most_tokens = max(max_num_rows, max_num_batched_tokens)
        self._decode_sizes = buckets_up_to(max_num_seqs)
        self._num_guesses = num_guesses
        # A row and all its guesses.
        self._siblings = 1 << num_guesses.bit_length()
        self._decoding = {size: Bucket.decoding(size, self._decodes_at_bounds) for size in self._decode_sizes}
        # A guess has another row before it.
        self._verify_sizes = tuple(size for size in buckets_up_to(max_num_rows) if num_guesses and size > 1)
        self._verifying = {
            size: Bucket.verifying(size, self._siblings, self._checks_at_bounds, self._entries_a_row * size)
            for size in self._verify_sizes
        }
        most_rows = sorted({max_num_seqs, max_num_rows})
        self._mixed_rows = (*(rows for rows in MIXED_ROWS if rows < max_num_seqs), *most_rows)
        self._token_sizes = tuple(size for size in buckets_up_to(max_num_batched_tokens) if size >= 8) or (
            max_num_batched_tokens,
        )

    def of(self, rows: StepRows, verifies: bool = False) -> Bucket:
        """The bucket of a step.

        Args:
            rows: of the step, guesses in rows of their own.
            verifies: some may be guesses, or at bounds.
        """
        num_rows, num_tokens = len(rows.slots), int(np.add.reduce(rows.counts))
        if num_rows == num_tokens:
            if verifies:
                return self._verifying[pad_to(num_rows, self._verify_sizes)]
            return self._decoding[pad_to(num_rows, self._decode_sizes)]
        return self._mixed(pad_to(num_rows, self._mixed_rows), pad_to(num_tokens, self._token_sizes))

    def takes_apart(self, rows: StepRows) -> bool:
        """Whether a draft model's pass had better have a row for each token: no row has more of them than one that is
        checked with all its guesses, and some have several. So most passes are of one size, not of two.
        """
        return bool(1 < rows.counts.max() <= 1 + self._num_guesses)

    def decoding(self) -> list[Bucket]:
        """All of steps in which every row has one known token, the smallest first."""
        return list(self._decoding.values())

    def verifying(self) -> list[Bucket]:
        """All of steps that decode and may check guesses, the smallest first."""
        return list(self._verifying.values())

    def one_token_a_row(self) -> list[Bucket]:
        """Both of these, the largest first."""
        return sorted([*self.decoding(), *self.verifying()], key=lambda bucket: bucket.num_rows, reverse=True)

    def smallest(self) -> list[Bucket]:
        """One of each kind: of steps that decode, that have prompts in them, and that check guesses if anybody does."""
        return [self.decoding()[0], self._mixed(self._mixed_rows[0], self._token_sizes[0]), *self.verifying()[:1]]

    def _mixed(self, num_rows: int, num_tokens: int) -> Bucket:
        return Bucket(num_rows, num_tokens, at_bounds=self._checks_at_bounds)
