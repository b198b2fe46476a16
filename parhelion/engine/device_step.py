"""One step on the device, from the buffer of integers to the sampled ids: what a CUDA graph captures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch

from parhelion.engine.device_sampling import DeviceSampler
from parhelion.engine.device_state import DeviceState
from parhelion.engine.step_layout import Bucket, StepInts, view_ints
from parhelion.layers.step_batch import StepBatch
from parhelion.models.decoder import DecoderModel
from parhelion.ops.paged_attention.batch import AttentionBatch


class Mode(Enum):
    """Who chooses the tokens: the device greedily, the device by drawing, or the host from the logits."""

    GREEDY = "greedy"
    DRAW = "draw"
    HOST = "host"


@dataclass(frozen=True)
class StepOutputs:
    """What a step leaves on the device.

    Attributes:
        token_ids: [num_rows] int64; meaningless under ``Mode.HOST`` and for rows that do not sample.
        logits: [num_rows, vocab_size], in the activations' dtype.
        hidden: [num_tokens, hidden_size].
    """

    token_ids: torch.Tensor
    logits: torch.Tensor
    hidden: torch.Tensor


class DeviceStep:
    """Runs a step of any bucket; reads and writes nothing but device memory, and never waits.

    Args:
        model: with its weights.
        kv_cache: a tensor a layer.
        state: of all slots.
        sampler: chooses tokens.
        block_size: tokens of a block.
    """

    def __init__(
        self,
        model: DecoderModel,
        kv_cache: Sequence[torch.Tensor],
        state: DeviceState,
        sampler: DeviceSampler,
        block_size: int,
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._state = state
        self._sampler = sampler
        self._block_size = block_size

    def run(self, buffer: torch.Tensor, bucket: Bucket, mode: Mode) -> StepOutputs:
        """Compute the step whose integers lie at the front of the buffer."""
        ints = view_ints(buffer, bucket)
        hidden = self._model.forward(self._batch(ints, bucket), self._kv_cache)
        last = hidden if bucket.decodes else hidden[ints.sample_token.long()]
        logits = self._model.compute_logits(last)
        if mode is Mode.HOST:
            return StepOutputs(ints.row_slot.long(), logits, hidden)
        greedy = mode is Mode.GREEDY
        token_ids = self._sampler.greedy(logits) if greedy else self._sampler.draw(logits.float(), ints, self._state)
        token_ids = self._model.group.from_first(token_ids)
        self._store(ints, token_ids)
        return StepOutputs(token_ids, logits, hidden)

    def store(self, buffer: torch.Tensor, bucket: Bucket, token_ids: torch.Tensor) -> None:
        """Make ids [num_rows] that the host has chosen the next tokens of the step's rows."""
        self._store(view_ints(buffer, bucket), token_ids)

    def _store(self, ints: StepInts, token_ids: torch.Tensor) -> None:
        self._state.tokens[ints.row_slot.long(), ints.sample_position.long()] = token_ids.int()

    def _batch(self, ints: StepInts, bucket: Bucket) -> StepBatch:
        rows = ints.token_row.long()
        positions = ints.token_position.long()
        slots = ints.row_slot.long()
        slot_of_token = slots[rows]
        blocks = self._state.block_table[slot_of_token, positions // self._block_size].long()
        slot_mapping = torch.where(rows < 0, -1, blocks * self._block_size + positions % self._block_size)
        attention = AttentionBatch(
            block_table=self._state.block_table[slots],
            seq_lens=ints.seq_lens,
            query_start_loc=ints.query_start_loc,
            max_query_len=bucket.max_query_len,
            max_seq_len=self._state.tokens.shape[1] - 2,
        )
        return StepBatch(self._state.tokens[slot_of_token, positions].long(), positions, slot_mapping, attention)
