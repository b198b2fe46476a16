"""Steps that are planned before the one under way has checked its guesses: the device takes off what was wrong.

Their rows' places are upper bounds, as if all guesses of a slot's last step were right. When the step runs, a table
says how many were not.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from parhelion.engine.step_layout import Bucket, StepInts, view_ints, view_places


def read_ints(buffer: torch.Tensor, bucket: Bucket, num_wrong: torch.Tensor) -> StepInts:
    """A step's integers, places put right.

    Args:
        buffer: int32, with the step at its front.
        bucket: its sizes.
        num_wrong: [num_slots] int32, how many guesses of each slot's last step were wrong.
    """
    ints = view_ints(buffer, bucket)
    if ints.bounded is None:
        return ints
    off = num_wrong.index_select(0, ints.row_slot) & ints.bounded
    places = view_places(buffer, bucket) - off
    if bucket.decodes:
        token_position = places[3]
    else:
        # Tokens of padding have no row, and stay where they are.
        of_tokens = off[ints.token_row.long()].masked_fill(ints.token_row < 0, 0)
        token_position = ints.token_position - of_tokens
    return replace(
        ints, seq_lens=places[0], sample_position=places[1], output_index=places[2], token_position=token_position
    )


def choose_samples(ints: StepInts, num_wrong: torch.Tensor, spare_position: int) -> StepInts:
    """Of rows one of which samples, whichever follows the last guess that was right, let the others not sample.

    Args:
        ints: a step's.
        num_wrong: see ``read_ints``.
        spare_position: where rows sample to that do not.
    """
    if ints.samples_if is None:
        return ints
    wrong = num_wrong.index_select(0, ints.row_slot)
    is_other = (ints.samples_if > 0) & (ints.samples_if != wrong + 1)
    return replace(ints, sample_position=ints.sample_position.masked_fill(is_other, spare_position))


def count_wrong(num_wrong: torch.Tensor, ints: StepInts, checked: torch.Tensor, sampled: torch.Tensor) -> None:
    """Note how many guesses of each slot were wrong: all from the first one that is not what its model has sampled.

    Args:
        num_wrong: [num_slots] int32, written for the slots of a step's rows.
        ints: the step's, with ``guesses_left``.
        checked: [num_rows] int64, the last token of each row; guesses are rows behind another of their slot.
        sampled: [num_rows] int64, behind each row.
    """
    assert ints.guesses_left is not None, "the bucket is at bounds"
    lost = ints.guesses_left[1:] * (checked[1:] != sampled[:-1])
    num_wrong.scatter_reduce_(0, ints.row_slot[1:].long(), lost, "amax", include_self=False)
