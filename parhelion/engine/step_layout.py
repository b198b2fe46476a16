"""The integers that a device needs for one step, packed so that a single copy brings them all.

A step is padded to a bucket: ``num_rows`` rows and ``num_tokens`` tokens. Padding rows use a spare slot whose blocks
are never read by anyone, padding tokens have row -1. A guess is a row of its own, of the slot of those before it, so
that a row samples one token at most. So are the few tokens that a draft model catches up on.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from parhelion.scheduler import StepPlan

Ints = npt.NDArray[np.int64]


class Bucket(msgspec.Struct, frozen=True):
    """Sizes that a step is padded to; one CUDA graph serves all steps of a bucket.

    Attributes:
        num_rows, num_tokens: what rows and tokens are padded to.
        decodes: every row has one token. Equal sizes alone do not say so: both are padded.
        siblings: and up to so many of them, next to each other, may be of one slot, as guesses are; a power of two.
        at_bounds: rows may be planned before it is known how many of their slots' last guesses are wrong, which the
            device takes off.
        entries: of the tables of requests that come with a step's integers. The step writes them before it looks
            anything up.
    """

    num_rows: int
    num_tokens: int
    decodes: bool = False
    siblings: int = 1
    at_bounds: bool = False
    entries: int = 0

    @classmethod
    def decoding(cls, num_rows: int, at_bounds: bool = False) -> Bucket:
        """Of steps in which every row has one token, and a slot of its own."""
        return cls(num_rows, num_rows, decodes=True, at_bounds=at_bounds)

    @classmethod
    def verifying(cls, num_rows: int, siblings: int, at_bounds: bool = False, entries: int = 0) -> Bucket:
        """Of steps in which every row has one token, and slots may have several rows."""
        return cls(num_rows, num_rows, decodes=True, siblings=siblings, at_bounds=at_bounds, entries=entries)

    @property
    def verifies(self) -> bool:
        """Whether rows may stand behind other rows of their slot."""
        return self.siblings > 1

    @property
    def max_query_len(self) -> int:
        """A bound of a row's tokens, for attention.

        1 lets a program write its row's token to the cache and attend to it in one launch. A guess also attends to
        tokens that other rows of the step write, so there the bound is that of any other step of so many tokens: who
        does not know of siblings takes it for one.
        """
        return 1 if self.decodes and not self.verifies else self.num_tokens


@dataclass(frozen=True)
class StepInts:
    """A step's integers, as numpy arrays on the host or as int32 tensors on the device.

    Attributes:
        row_slot: [num_rows] the row's slot.
        query_start_loc: [num_rows + 1] offsets into the tokens.
        sample_token: [num_rows] the row's last token, whose hidden state predicts the next.
        seq_lens: [num_rows] tokens in the cache after the step; 0 for padding.
        sample_position: [num_rows] where the sampled id goes; the spare column for rows that do not sample.
        output_index: [num_rows] index of the sampled token among the request's outputs.
        token_position: [num_tokens] the token's position.
        token_row: [num_tokens] the token's row; -1 for padding.
        bounded: [num_rows] of a bucket that is ``at_bounds``: -1 where the row's places are upper bounds, else 0.
        guesses_left: [num_rows] of such a bucket: guesses of the slot from this row on; 0 if it is no guess.
        samples_if: [num_rows] of such a bucket: the row samples only if one fewer of its slot's last guesses are wrong;
            0: it does in any case.
    """

    row_slot: torch.Tensor
    query_start_loc: torch.Tensor
    sample_token: torch.Tensor
    seq_lens: torch.Tensor
    sample_position: torch.Tensor
    output_index: torch.Tensor
    token_position: torch.Tensor
    token_row: torch.Tensor
    bounded: torch.Tensor | None = None
    guesses_left: torch.Tensor | None = None
    samples_if: torch.Tensor | None = None


def view_ints(buffer: torch.Tensor, bucket: Bucket) -> StepInts:
    """The fields of a bucket as views of the front of an int32 buffer."""
    sizes = _sizes(bucket)
    return StepInts(*torch.split(buffer[: sum(sizes)], sizes))


def view_places(buffer: torch.Tensor, bucket: Bucket) -> torch.Tensor:
    """[3, num_rows] what says where rows are, as a view: ``seq_lens``, ``sample_position`` and ``output_index``; where
    every row has one token, [4, num_rows], with ``token_position``.
    """
    rows, count = bucket.num_rows, 4 if bucket.decodes else 3
    first = 3 * rows + 1
    return buffer[first : first + count * rows].view(count, rows)


def entry_places(bucket: Bucket) -> tuple[slice, slice]:
    """Where a buffer has, behind a bucket's other fields, the offsets of its entries, 64 bits each, and their values,
    32 bits each.
    """
    first = sum(_sizes(bucket))
    first += first % 2
    between = first + 2 * bucket.entries
    return slice(first, between), slice(between, between + bucket.entries)


def num_ints(bucket: Bucket) -> int:
    """Integers that a bucket's fields take."""
    return entry_places(bucket)[1].stop if bucket.entries else sum(_sizes(bucket))


def _sizes(bucket: Bucket) -> tuple[int, ...]:
    rows, tokens = bucket.num_rows, bucket.num_tokens
    more = (rows,) * 3 if bucket.at_bounds else ()
    return (rows, rows + 1, rows, rows, rows, rows, tokens, tokens, *more)


class StepRows(msgspec.Struct, frozen=True):
    """A planned step's rows on the host, each an int64 array over rows.

    Like a bucket and the samples it is a struct because a step makes several: a tenth of a frozen dataclass's time.

    Attributes:
        slots: of the workers' tensors.
        starts: tokens in the cache before the step.
        counts: new tokens.
        samples: how many tokens the row samples, one behind each of its last ones.
        output_indices: of the first of them among its request's outputs.
        unchecked: None: all these are known. Above 0 where they are upper bounds: so many guesses of the slot's last
            step are not checked yet, and those that are wrong are to be taken off. Below 0, -1 - n: they are known, but
            whether the row samples is not; it does if n of these guesses are wrong.
    """

    slots: Ints
    starts: Ints
    counts: Ints
    samples: Ints
    output_indices: Ints
    unchecked: Ints | None = None


def rows_of(plan: StepPlan) -> StepRows:
    """A plan's rows as arrays."""
    fields: list[int] = []
    for row in plan.rows:
        num_samples = row.samples + len(row.guesses)
        fields += (row.slot, row.start, row.num_tokens, num_samples, row.output_index, row.unchecked)
    return _rows(fields)


def rows_apart(plan: StepPlan) -> StepRows:
    """``guesses_apart`` of a plan's rows, in fewer steps."""
    fields: list[int] = []
    for row in plan.rows:
        slot, start, output_index, unchecked = row.slot, row.start, row.output_index, row.unchecked
        num_guesses = len(row.guesses)
        fields += (slot, start, row.num_tokens - num_guesses, row.samples, output_index, unchecked)
        for number in range(1, num_guesses + 1):
            fields += (slot, start + number, 1, 1, output_index + number, unchecked)
    return _rows(fields)


def _rows(fields: list[int]) -> StepRows:
    """Of six numbers each."""
    slots, starts, counts, samples, output_indices, unchecked = np.array(fields, np.int64).reshape(-1, 6).T.copy()
    return StepRows(slots, starts, counts, samples, output_indices, unchecked if any(fields[5::6]) else None)


class Samples(msgspec.Struct, frozen=True):
    """The tokens that a step samples, each an int64 array over them, in the order of the rows.

    Attributes:
        rows: whose they are.
        slots: of the rows.
        tokens: among the step's tokens, those whose hidden states predict them.
        positions: where they go in their requests.
        output_indices: among their requests' outputs.
    """

    rows: Ints
    slots: Ints
    tokens: Ints
    positions: Ints
    output_indices: Ints

    def those(self, which: npt.NDArray[np.bool_]) -> Samples:
        """Some of them, in the same order."""
        return Samples(
            self.rows[which], self.slots[which], self.tokens[which], self.positions[which], self.output_indices[which]
        )


def samples_of(rows: StepRows) -> Samples:
    """What the rows sample."""
    counts = rows.samples
    of, number = np.arange(len(counts)).repeat(counts), numbers(counts)
    # How many of its row's samples come behind it.
    behind = (counts - 1)[of] - number
    return Samples(
        of,
        rows.slots[of],
        (rows.counts.cumsum() - 1)[of] - behind,
        (rows.starts + rows.counts)[of] - behind,
        rows.output_indices[of] + number,
    )


def guesses_apart(rows: StepRows) -> StepRows:
    """The same tokens in the same order, each guess in a row of its own; rows without guesses stay as they are.

    A row with guesses has one token before them, and every row samples one token at most then.
    """
    guesses = np.maximum(rows.samples - 1, 0)
    parts = guesses + 1
    number = numbers(parts)
    return StepRows(
        rows.slots.repeat(parts),
        rows.starts.repeat(parts) + number,
        (rows.counts - guesses).repeat(parts),
        (rows.samples - guesses).repeat(parts),
        rows.output_indices.repeat(parts) + number,
        _repeated(rows.unchecked, parts),
    )


def tokens_apart(rows: StepRows) -> StepRows:
    """The same tokens in the same order, each in a row of its own, of which the last of a row samples if that does; of
    rows that sample one token at most.
    """
    number = numbers(rows.counts)
    samples = np.zeros(len(number), np.int64)
    samples[rows.counts.cumsum() - 1] = rows.samples
    return StepRows(
        rows.slots.repeat(rows.counts),
        rows.starts.repeat(rows.counts) + number,
        np.ones(len(number), np.int64),
        samples,
        rows.output_indices.repeat(rows.counts),
        _repeated(rows.unchecked, rows.counts),
    )


def numbers(counts: Ints) -> Ints:
    """Of things that each have ``counts`` parts: of every part its number among those of the same thing."""
    ends = counts.cumsum()
    return np.arange(int(ends[-1]) if len(ends) else 0) - (ends - counts).repeat(counts)


def _repeated(values: Ints | None, counts: Ints) -> Ints | None:
    return None if values is None else values.repeat(counts)


def pack(rows: StepRows, bucket: Bucket, buffer: npt.NDArray[np.int32], spare_slot: int, spare_position: int) -> int:
    """Write a step's fields but its entries, padded to the bucket, to the front of a buffer. Returns how many integers
    that took.
    """
    num_rows, seq_lens = len(rows.slots), rows.starts + rows.counts
    indices = np.arange(num_rows + 1)
    if bucket.decodes:
        num_tokens, query_start_loc, row_of_token, positions = num_rows, indices, indices[:-1], rows.starts
    else:
        query_start_loc = np.zeros_like(indices)
        rows.counts.cumsum(out=query_start_loc[1:])
        num_tokens = int(query_start_loc[-1])
        row_of_token = indices[:-1].repeat(rows.counts)
        positions = np.arange(num_tokens) - (query_start_loc[:-1] - rows.starts).repeat(rows.counts)
    fields = (
        (rows.slots, bucket.num_rows, spare_slot),
        (query_start_loc, bucket.num_rows + 1, num_tokens),
        (query_start_loc[1:] - 1, bucket.num_rows, 0),
        (seq_lens, bucket.num_rows, 0),
        (np.where(rows.samples, seq_lens, spare_position), bucket.num_rows, spare_position),
        (rows.output_indices, bucket.num_rows, 0),
        (positions, bucket.num_tokens, 0),
        (row_of_token, bucket.num_tokens, -1),
    )
    offset = 0
    for values, size, padding in fields:
        count = len(values)
        buffer[offset : offset + count] = values
        if count < size:
            buffer[offset + count : offset + size] = padding
        offset += size
    if bucket.at_bounds:
        end = offset + 3 * bucket.num_rows
        _pack_bounds(rows, bucket, buffer[offset:end].reshape(3, -1))
        return end
    assert rows.unchecked is None, "only steps of other buckets have bounds"
    return offset


class Repacking:
    """Changes a buffer that holds a step whose rows have one token each into another such step.

    Args:
        bucket: of both.
        num_rows: of both.
        buffer: of int32, with the step at its front.
    """

    def __init__(self, bucket: Bucket, num_rows: int, buffer: npt.NDArray[np.int32]) -> None:
        size, first = bucket.num_rows, 3 * bucket.num_rows + 1
        self._bucket = bucket
        self._row_slot = buffer[:num_rows]
        self._places = tuple(buffer[first : first + 4 * size].reshape(4, size)[:, :num_rows])
        self._bounds = buffer[first + 5 * size : first + 8 * size].reshape(3, size) if bucket.at_bounds else None

    def write(self, rows: StepRows, spare_position: int) -> None:
        """What ``pack`` does; the entries are not touched."""
        seq_lens, sample_position, output_index, token_position = self._places
        ends = rows.starts + 1
        self._row_slot[:] = rows.slots
        seq_lens[:] = ends
        sample_position[:] = np.where(rows.samples, ends, spare_position)
        output_index[:] = rows.output_indices
        token_position[:] = rows.starts
        if self._bounds is not None:
            _pack_bounds(rows, self._bucket, self._bounds)
        else:
            assert rows.unchecked is None, "only steps of other buckets have bounds"


def _pack_bounds(rows: StepRows, bucket: Bucket, fields: npt.NDArray[np.int32]) -> None:
    """Write ``StepInts.bounded``, ``guesses_left`` and ``samples_if`` of a step's rows: [3, num_rows]."""
    count = len(rows.slots)
    fields[:] = 0
    if rows.unchecked is not None:
        fields[0, :count] = -(rows.unchecked > 0).astype(np.int32)
        fields[2, :count] = np.maximum(-rows.unchecked, 0)
    if count and (bucket.verifies or not bucket.decodes):
        firsts = np.concatenate(([0], (rows.slots[1:] != rows.slots[:-1]).nonzero()[0] + 1))
        ends = np.concatenate((firsts[1:], [count]))
        fields[1, :count] = ends.repeat(ends - firsts) - np.arange(count)
        fields[1, firsts] = 0


def buckets_up_to(limit: int) -> tuple[int, ...]:
    """Sizes that counts are padded to: powers of two to 16, then steps of an eighth of the next power of two."""
    sizes = [1, 2, 4, 8]
    while sizes[-1] < limit:
        step = max(8, 1 << (sizes[-1].bit_length() - 3))
        sizes.append(sizes[-1] + step)
    return (*(size for size in sizes if size < limit), limit)


def pad_to(count: int, sizes: tuple[int, ...]) -> int:
    """The smallest of the sizes that is at least count."""
    return sizes[bisect_left(sizes, count)]
