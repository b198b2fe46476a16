"""The worker of a CPU: owns the model, the KV cache and every per-request tensor; runs one planned step at a time.

Sampled ids stay here, in the token buffer, so that the next step can be planned before they are known elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from parhelion.engine.host_sampling import HostSampler
from parhelion.engine.kv_storage import KVCacheSize, allocate_kv_cache
from parhelion.engine.messages import AddRequest
from parhelion.engine.sampling_state import SamplingState
from parhelion.engine.step_layout import Ints, StepRows, rows_of, samples_of
from parhelion.engine.step_result import StepResult
from parhelion.layers.step_batch import StepBatch
from parhelion.models.decoder import DecoderModel
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.paged_attention.cpu_batch import plan_cpu_attention
from parhelion.scheduler import StepPlan

WARM_UP_LENGTHS = (8, 5)
"""Prompts: two lengths, since a compiler takes a length for a constant until it meets a second one."""

WARM_UP_ROWS = (((0,), 0), ((2,), 0), ((1, 2), 1), ((0, 1, 2), 2), ((2, 1), 1), ((2, 0, 1), 2))
"""Decode rows, by their blocks and the place of the token in the last of these: two of a single token, two lengths of
rows whose blocks lie side by side, and two of others."""


class Worker:
    """Executes plans in the order in which they were made.

    Args:
        model: with its weights.
        size: of the KV cache.
        block_size: tokens of a block.
        max_num_seqs: number of slots.
    """

    def __init__(self, model: DecoderModel, size: KVCacheSize, block_size: int, max_num_seqs: int) -> None:
        self._model = model
        self._block_size = block_size
        self._kv_cache = allocate_kv_cache(size, model.config, block_size, model.dtype, model.device)
        layers = range(model.config.num_layers)
        self._windows = frozenset(model.config.sliding_window(layer) for layer in layers)
        self._block_table = np.zeros((max_num_seqs, -(-size.max_model_len // block_size)), np.int64)
        self._num_blocks = np.zeros(max_num_seqs, np.int64)
        self._sampling = SamplingState(max_num_seqs)
        self._sampler = HostSampler(model, self._sampling, max_num_seqs, size.max_model_len)

    def warm_up(self) -> None:
        """Run decode rows and a prompt through the model, so that whatever compiles at first use has compiled.

        What it leaves in the cache is overwritten before anyone reads it.
        """
        zero, one = np.zeros(1, np.int64), np.ones(1, np.int64)
        room = self._block_size * len(self._kv_cache[0])
        with torch.inference_mode():
            for length in WARM_UP_LENGTHS:
                rows = StepRows(zero, zero, np.array([min(length, room)]), zero, zero)
                self._model.compute_logits(self._forward(rows)[-1:])
            for blocks, position in WARM_UP_ROWS:
                start = (len(blocks) - 1) * self._block_size + position % self._block_size
                if max(blocks) < len(self._kv_cache[0]) and len(blocks) <= self._block_table.shape[1]:
                    self._block_table[0, : len(blocks)] = blocks
                    self._model.compute_logits(self._forward(StepRows(zero, np.array([start]), one, zero, zero)))
            self._block_table[0] = 0

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> StepResult:
        """Run a step.

        Args:
            plan: which tokens of which slots.
            admitted: the requests of ``plan.admissions``, in their order.
        """
        with torch.inference_mode():
            self._take_admissions(plan, admitted)
            self._sampler.guess(plan.rows)
            rows = rows_of(plan)
            hidden = self._forward(rows)
            prompt_logprobs = self._sampler.prompt_logprobs(plan.rows, np.cumsum(rows.counts) - rows.counts, hidden)
            samples = samples_of(rows)
            if not len(samples.rows):
                return StepResult([], [], prompt_logprobs)
            logits = self._model.compute_logits(hidden[torch.from_numpy(samples.tokens)]).float()
            chosen, logprobs = self._sampler.sample(logits, samples, self._sampler.stays(rows))
            return StepResult(chosen.tolist(), logprobs, prompt_logprobs)

    def _take_admissions(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> None:
        for admission, request in zip(plan.admissions, admitted, strict=True):
            self._sampler.admit(admission.slot, np.array(admission.token_ids, np.int64))
            self._num_blocks[admission.slot] = 0
            self._append_blocks(admission.slot, admission.block_ids)
            self._sampling.set(admission.slot, request)
        for new in plan.new_blocks:
            self._append_blocks(new.slot, new.block_ids)

    def _append_blocks(self, slot: int, block_ids: Sequence[int]) -> None:
        first = self._num_blocks[slot]
        self._block_table[slot, first : first + len(block_ids)] = block_ids
        self._num_blocks[slot] += len(block_ids)

    def _forward(self, rows: StepRows) -> torch.Tensor:
        ends = np.cumsum(rows.counts)
        positions = np.arange(ends[-1]) - np.repeat(ends - rows.counts - rows.starts, rows.counts)
        slot_of_token = np.repeat(rows.slots, rows.counts)
        blocks = self._block_table[slot_of_token, positions // self._block_size]
        slot_mapping = blocks * self._block_size + positions % self._block_size
        token_ids = self._sampler.tokens[slot_of_token, positions].astype(np.int64)
        batch = StepBatch(
            torch.from_numpy(token_ids),
            torch.from_numpy(positions),
            torch.from_numpy(slot_mapping),
            self._attention_batch(rows, ends),
        )
        return self._model.forward(batch, self._kv_cache)

    def _attention_batch(self, rows: StepRows, ends: Ints) -> AttentionBatch:
        block_table = self._block_table[rows.slots]
        seq_lens = rows.starts + rows.counts
        return AttentionBatch(
            block_table=torch.from_numpy(block_table).int(),
            seq_lens=torch.from_numpy(seq_lens).int(),
            query_start_loc=torch.from_numpy(np.concatenate(([0], ends))).int(),
            max_query_len=int(rows.counts.max()),
            max_seq_len=int(seq_lens.max()),
            cpu=plan_cpu_attention(
                block_table,
                rows.starts.tolist(),
                rows.counts.tolist(),
                self._block_size,
                self._windows,
                self._model.dtype,
            ),
        )
