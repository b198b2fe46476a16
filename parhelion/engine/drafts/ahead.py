"""Guesses that the last stage of a pipeline makes at the end of a step, for the next step of the same requests.

The first stage must know a step's guesses when it begins. So they go to the scheduler with what was sampled, and come
to all stages with the plan, as if anybody else had made them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parhelion.engine.drafts.progress import num_guesses
from parhelion.engine.step_layout import Ints, StepRows
from parhelion.engine.step_result import Proposal
from parhelion.scheduler import Row


def guesses_of(rows: Sequence[Row]) -> list[int]:
    """What the rows check, row after row."""
    return [guess for row in rows for guess in row.guesses]


def rows_behind(rows: StepRows, accepted: Ints, num_blocks: Ints, sizes: tuple[int, int], most: int) -> StepRows:
    """What may be planned next for a step's rows: the token that each has just sampled with guesses behind it, or more
    of a prompt.

    Args:
        rows: the step's.
        accepted: [num_rows] how many of each row's guesses were right.
        num_blocks: [num_rows] blocks that each has. Guesses that these have no room for are not made.
        sizes: tokens of a block, and of a request at most.
        most: guesses for each.
    """
    block_size, max_model_len = sizes
    samples = rows.samples > 0
    starts = rows.starts + rows.counts - num_guesses(rows) + accepted
    room = np.minimum(num_blocks * block_size, max_model_len) - starts
    guesses = np.where(samples, np.clip(room, 0, most), 0)
    return StepRows(
        rows.slots,
        starts,
        # A prompt goes on with several tokens, as far as is known.
        np.where(samples, 1 + guesses, 2),
        np.where(samples, 1 + guesses, 0),
        rows.output_indices + 1 + accepted,
    )


def proposals(rows: Sequence[Row], behind: StepRows, token_ids: Sequence[int]) -> list[Proposal]:
    """Guesses by request.

    Args:
        rows: the step's.
        behind: ``rows_behind`` them.
        token_ids: guesses for those, row after row.
    """
    found, first = [], 0
    for row, start, count in zip(rows, behind.starts.tolist(), num_guesses(behind).tolist(), strict=True):
        if count:
            found.append(Proposal(row.request_id, start + 1, list(token_ids[first : first + count])))
        first += count
    return found
