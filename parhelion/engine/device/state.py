"""What a device holds of every running request, by slot: its tokens, its blocks, how its tokens are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from parhelion.engine.device.bounds import read_ints
from parhelion.engine.sampling_state import SamplingState
from parhelion.engine.step_layout import Bucket, StepInts, entry_places
from parhelion.layers.step_batch import StepBatch
from parhelion.ops.contract import Tensors
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.resolve import Resolver
from parhelion.ops.step_inputs import StepInputs
from parhelion.ops.step_inputs.formulas import row_inputs, token_inputs
from parhelion.scheduler import KNOWN, Row

_APART = 64
"""The tables begin at multiples of so many entries, as if each had been allocated by itself."""

PARAMETERS = 6
"""Columns of the sampling table: temperature, top_p, min_p (bits of float32), top_k, and the seed's two halves."""


class Update(msgspec.Struct, frozen=True):
    """Entries to write into the device's tables before a step.

    Attributes:
        offsets, values: of equal length, arrays or, of few, plain numbers; offsets are into all tables, laid out flat.
    """

    offsets: npt.NDArray[np.int64] | Sequence[int]
    values: npt.NDArray[np.int64] | Sequence[int]

    def flat(self) -> npt.NDArray[np.int32]:
        """All offsets, each in two halves, then all values."""
        return np.concatenate((np.asarray(self.offsets, np.int64).view(np.int32), np.asarray(self.values, np.int32)))


@dataclass(frozen=True)
class StepTensors:
    """What follows from a step's integers and the tables, before anything is computed.

    Attributes:
        batch: as a model is given it.
        sample_index: [num_rows] int64, where in ``tokens``, laid out flat, each row's sampled id goes.
    """

    batch: StepBatch
    sample_index: torch.Tensor


class DeviceState:
    """Tables on the device; one slot and one column more than requests use take what padding writes.

    Args:
        max_num_seqs: slots.
        max_model_len: tokens of a request.
        block_size: tokens of a block.
        device: where.
        resolver: finds who looks up what steps of single tokens are given.

    Attributes:
        flat: all tables in one, so that whatever changes in any of them is written at once.
        tokens: [max_num_seqs + 1, max_model_len + 2] int32.
        block_table: [max_num_seqs + 1, max_blocks] int32; the spare slot's blocks are never looked up.
        parameters: [max_num_seqs + 1, PARAMETERS] int32.
        num_wrong: [max_num_seqs + 1] int32, how many guesses of each slot's last step with any were wrong.
        spare_slot, spare_position: where padding goes.
        spare_offset: of that place in ``flat``.
    """

    def __init__(
        self, max_num_seqs: int, max_model_len: int, block_size: int, device: torch.device, resolver: Resolver
    ) -> None:
        self.spare_slot = max_num_seqs
        self.spare_position = max_model_len + 1
        self.spare_offset = self.spare_slot * (max_model_len + 2) + self.spare_position
        self.max_blocks = -(-max_model_len // block_size)
        self._block_size = block_size
        self._step_inputs = resolver.launcher(StepInputs(block_size))
        slots, widths = max_num_seqs + 1, (max_model_len + 2, self.max_blocks, PARAMETERS, 1)
        sizes = [-(-slots * width // _APART) * _APART for width in widths]
        self.flat = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        self.tokens, self.block_table, self.parameters, num_wrong = (
            part[: slots * width].view(slots, width) for part, width in zip(self.flat.split(sizes), widths, strict=True)
        )
        self.num_wrong = num_wrong[:, 0]
        self._first_block, self._first_parameter, self._first_num_wrong = np.cumsum(sizes[:3]).tolist()

    def take_in(self, buffer: torch.Tensor, bucket: Bucket) -> StepInts:
        """Write the entries that a step brings along, and read its integers.

        Args:
            buffer: int32 on the device, with the step at its front.
            bucket: its sizes.
        """
        if bucket.entries:
            offsets, values = entry_places(bucket)
            self.write(buffer[offsets], buffer[values])
        return read_ints(buffer, bucket, self.num_wrong)

    def write(self, offsets: torch.Tensor, values: torch.Tensor) -> None:
        """Write entries [n] int32 of tables; the offsets [2 n] int32 are in halves, and of those that are there more
        than once any may be the last.
        """
        self.flat.scatter_(0, offsets.view(torch.int64), values)

    def tensors(self, ints: StepInts, bucket: Bucket, tokens_ahead: int = 0) -> StepTensors:
        """What a step computes and where its ids go; nothing waits for the device.

        Args:
            ints: the step's, on the device.
            bucket: its sizes.
            tokens_ahead: how far behind its position each token's id stands, and how much further sampled ids go; 0 but
                for heads that take the next token.
        """
        ids, positions, slot_mapping, row_blocks, sample_index = self._looked_up(ints, bucket, tokens_ahead)
        attention = AttentionBatch(
            block_table=row_blocks,
            seq_lens=ints.seq_lens,
            query_start_loc=ints.query_start_loc,
            max_query_len=bucket.max_query_len,
            max_seq_len=self.tokens.shape[1] - 2,
            max_siblings=bucket.siblings,
            row_slots=ints.row_slot if bucket.verifies else None,
        )
        return StepTensors(StepBatch(ids, positions, slot_mapping, attention), sample_index)

    def _looked_up(self, ints: StepInts, bucket: Bucket, tokens_ahead: int) -> Tensors:
        """The outputs of ``StepInputs``, also where rows have several tokens."""
        tables = self.tokens, self.block_table
        if bucket.decodes and not tokens_ahead:
            fields = ints.row_slot, ints.token_row, ints.token_position, ints.sample_position
            found: Tensors = self._step_inputs(*fields, *tables)
            return found
        # The row of padding is -1, the last one: its slot exists.
        slots = ints.row_slot[ints.token_row.long()]
        return (
            *token_inputs(slots, ints.token_row, ints.token_position, *tables, self._block_size, tokens_ahead),
            *row_inputs(ints.row_slot, ints.sample_position, *tables, tokens_ahead),
        )

    def store(self, sample_index: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Write ids [num_rows] int64 where ``StepTensors`` says."""
        # The lower half of each, where it lies: numbers here and on GPUs begin with it.
        lower = token_ids.contiguous().view(torch.int32)[::2]
        self.tokens.view(-1).index_put_((sample_index,), lower)

    def token_update(self, slot: int, token_ids: npt.NDArray[np.int64]) -> Update:
        """A slot's first tokens."""
        return Update(slot * self.tokens.shape[1] + np.arange(len(token_ids)), token_ids)

    def told_update(self, rows: Sequence[Row]) -> Update:
        """The first tokens of rows for which the last stage has sampled them."""
        width = self.tokens.shape[1]
        told = [row for row in rows if row.first_token != KNOWN]
        return Update([row.slot * width + row.start for row in told], [row.first_token for row in told])

    def guess_update(self, rows: Sequence[Row]) -> Update:
        """The guesses of rows, behind their first tokens; what the step samples is written over them."""
        width = self.tokens.shape[1]
        offsets: list[int] = []
        guesses: list[int] = []
        for row in rows:
            if row.guesses:
                behind = row.slot * width + row.start + 1
                offsets += range(behind, behind + len(row.guesses))
                guesses += row.guesses
        return Update(offsets, guesses)

    def block_update(self, slot: int, first: int, block_ids: Sequence[int]) -> Update:
        """Blocks from index ``first`` of a slot on."""
        offset = self._first_block + slot * self.max_blocks + first
        return Update(range(offset, offset + len(block_ids)), block_ids)

    def parameter_update(self, slot: int, sampling: SamplingState) -> Update:
        """How a slot's tokens are chosen, as the host's ``SamplingState`` has it."""
        floats = np.array([sampling.temperature[slot], sampling.top_p[slot], sampling.min_p[slot]], np.float32).view(
            np.int32
        )
        seed = np.array([sampling.seed[slot]], np.uint64).view(np.int32)
        top_k = min(int(sampling.top_k[slot]), 2**31 - 1)
        values = np.concatenate((floats, [top_k], seed)).astype(np.int64)
        return Update(self._first_parameter + slot * PARAMETERS + np.arange(PARAMETERS), values)

    def wrong_update(self, slots: npt.NDArray[np.int64], num_wrong: npt.NDArray[np.int64]) -> Update:
        """How many guesses of these slots were wrong."""
        return Update(self._first_num_wrong + slots, num_wrong)


NO_UPDATE = Update((), ())


def merged(updates: Sequence[Update]) -> Update:
    """All entries of updates. Later ones win only if no offset occurs twice, so none may."""
    if not updates:
        return NO_UPDATE
    if len(updates) == 1:
        return updates[0]
    return Update(
        np.concatenate([update.offsets for update in updates]), np.concatenate([update.values for update in updates])
    )
