"""The worker: owns the model, the KV cache and every per-request tensor; runs one planned step at a time.

Sampled ids stay here, in the token buffer, so that the next step can be planned before they are known elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from parhelion.engine.kv_storage import KVCacheSize, allocate_kv_cache
from parhelion.engine.messages import AddRequest, TokenLogprob
from parhelion.engine.sampler import gather_logprobs, sample
from parhelion.engine.sampling_state import NO_LOGPROBS, SamplingState
from parhelion.layers.step_batch import StepBatch
from parhelion.models.decoder import DecoderModel
from parhelion.ops.attention import build_metadata
from parhelion.scheduler import Row, StepPlan

Ints = npt.NDArray[np.int64]

PROMPT_LOGPROB_ROWS = 64
"""Prompt positions whose logits over the whole vocabulary are held at once."""


@dataclass(frozen=True)
class PromptLogprobs:
    """Log-probabilities of prompt tokens that one chunk predicted.

    Attributes:
        first_position: of the first of them in the prompt; position 0 is never predicted.
    """

    request_id: str
    first_position: int
    logprobs: list[TokenLogprob]


@dataclass(frozen=True)
class StepResult:
    """What a step produced.

    Attributes:
        token_ids: sampled ids, one per row that samples, in the plan's order.
        logprobs: beside them, where asked for.
        prompt_logprobs: of prompt chunks, where asked for.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprob | None]
    prompt_logprobs: list[PromptLogprobs]


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
        self._kv_cache = allocate_kv_cache(size, model.config, block_size, model.dtype)
        layers = range(model.config.num_layers)
        self._windows = frozenset(model.config.sliding_window(layer) for layer in layers)
        self._tokens = np.zeros((max_num_seqs, size.max_model_len + 1), np.int32)
        self._block_table = np.zeros((max_num_seqs, -(-size.max_model_len // block_size)), np.int64)
        self._num_blocks = np.zeros(max_num_seqs, np.int64)
        self._sampling = SamplingState(max_num_seqs)

    def warm_up(self) -> None:
        """Run a decode row and a prompt through the model, so that whatever compiles at first use has compiled.

        What it leaves in the cache is overwritten before anyone reads it.
        """
        with torch.inference_mode():
            for num_tokens in (1, min(8, self._block_size * len(self._kv_cache[0]))):
                counts, positions = np.array([num_tokens]), np.arange(num_tokens)
                zeros = np.zeros(num_tokens, np.int64)
                hidden = self._forward(zeros[:1], zeros[:1], counts, zeros, positions)
                self._model.compute_logits(hidden[-1:])

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> StepResult:
        """Run a step.

        Args:
            plan: which tokens of which slots.
            admitted: the requests of ``plan.admissions``, in their order.
        """
        with torch.inference_mode():
            return self._execute(plan, admitted)

    def _execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> StepResult:
        self._take_admissions(plan, admitted)
        slots = np.array([row.slot for row in plan.rows], np.int64)
        starts = np.array([row.start for row in plan.rows], np.int64)
        counts = np.array([row.num_tokens for row in plan.rows], np.int64)
        ends = np.cumsum(counts)
        positions = np.arange(ends[-1]) - np.repeat(ends - counts - starts, counts)
        slot_of_token = np.repeat(slots, counts)
        hidden = self._forward(slots, starts, counts, slot_of_token, positions)
        prompt_logprobs = self._prompt_logprobs(plan.rows, ends - counts, hidden)
        samples = np.flatnonzero([row.samples for row in plan.rows])
        if not len(samples):
            return StepResult([], [], prompt_logprobs)
        logits = self._model.compute_logits(hidden[torch.from_numpy(ends[samples] - 1)])
        output_indices = np.array([plan.rows[i].output_index for i in samples.tolist()], np.int64)
        chosen, logprobs = sample(logits, slots[samples], output_indices, self._tokens, self._sampling)
        self._tokens[slots[samples], starts[samples] + counts[samples]] = chosen
        return StepResult(chosen.tolist(), logprobs, prompt_logprobs)

    def _take_admissions(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> None:
        for admission, request in zip(plan.admissions, admitted, strict=True):
            self._tokens[admission.slot, : len(admission.token_ids)] = admission.token_ids
            self._num_blocks[admission.slot] = 0
            self._append_blocks(admission.slot, admission.block_ids)
            self._sampling.set(admission.slot, request)
        for new in plan.new_blocks:
            self._append_blocks(new.slot, new.block_ids)

    def _append_blocks(self, slot: int, block_ids: Sequence[int]) -> None:
        first = self._num_blocks[slot]
        self._block_table[slot, first : first + len(block_ids)] = block_ids
        self._num_blocks[slot] += len(block_ids)

    def _forward(self, slots: Ints, starts: Ints, counts: Ints, slot_of_token: Ints, positions: Ints) -> torch.Tensor:
        blocks = self._block_table[slot_of_token, positions // self._block_size]
        metadata = build_metadata(
            self._block_table[slots],
            starts.tolist(),
            counts.tolist(),
            blocks * self._block_size + positions % self._block_size,
            self._block_size,
            self._windows,
            self._model.dtype,
        )
        token_ids = self._tokens[slot_of_token, positions].astype(np.int64)
        batch = StepBatch(torch.from_numpy(token_ids), torch.from_numpy(positions), metadata)
        return self._model.forward(batch, self._kv_cache)

    def _prompt_logprobs(self, rows: Sequence[Row], first_tokens: Ints, hidden: torch.Tensor) -> list[PromptLogprobs]:
        results = []
        for row, first_token in zip(rows, first_tokens.tolist(), strict=True):
            wanted = int(self._sampling.prompt_logprobs[row.slot])
            # The hidden state of a position predicts the next token: the prompt's last one predicts an output.
            stop = min(row.start + row.num_tokens, int(self._sampling.num_prompt_tokens[row.slot]) - 1)
            if wanted == NO_LOGPROBS or stop <= row.start:
                continue
            logprobs: list[TokenLogprob] = []
            for start in range(row.start, stop, PROMPT_LOGPROB_ROWS):
                end = min(stop, start + PROMPT_LOGPROB_ROWS)
                first = first_token + start - row.start
                distribution = self._model.compute_logits(hidden[first : first + end - start]).log_softmax(-1)
                predicted = self._tokens[row.slot, start + 1 : end + 1].astype(np.int64)
                logprobs += gather_logprobs(distribution, predicted, np.full(end - start, wanted))
            results.append(PromptLogprobs(row.request_id, row.start + 1, logprobs))
        return results
