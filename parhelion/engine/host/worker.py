"""The worker of a CPU: owns the model, the KV cache and every per-request tensor; runs one planned step at a time.

Sampled ids stay here, in the token buffer, so that the next step can be planned before they are known elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from parhelion.distributed.stages import StageLinks
from parhelion.engine.drafts.ahead import guesses_of, proposals, rows_behind
from parhelion.engine.drafts.progress import DraftProgress, HeadProgress
from parhelion.engine.host.batches import HostBatches
from parhelion.engine.host.drafter import HostDrafter, ModelDraft
from parhelion.engine.host.head import HeadDraft
from parhelion.engine.host.sampling import HostSampler
from parhelion.engine.kv_storage import KVCacheSize, allocate_kv_cache
from parhelion.engine.messages import AddRequest, TokenLogprob
from parhelion.engine.sampling_state import SamplingState
from parhelion.engine.step_layout import Ints, Samples, StepRows, rows_of, samples_of
from parhelion.engine.step_result import NOTHING, Drafted, Proposal, StepResult
from parhelion.layers.one_token import for_any_row
from parhelion.models.decoder import DecoderModel, HiddenStates
from parhelion.models.eagle3 import Eagle3Head
from parhelion.scheduler import StepPlan

WARM_UP_LENGTHS = (8, 5)
"""Prompts: two lengths, since a compiler takes a length for a constant until it meets a second one."""

WARM_UP_ROWS = (((0,), 0), ((1, 2), 1), ((2, 1), 1))
"""Decode rows, by their blocks and the place of the token in the last of these: one of a single token, one whose blocks
lie side by side, and another."""


class Worker:
    """Executes plans in the order in which they were made.

    Args:
        model: with its weights.
        size: of the KV cache.
        block_size: tokens of a block.
        max_num_seqs: number of slots.
        draft_model: guesses tokens for steps to check; None: nobody does, or the scheduler knows somebody.
        max_num_batched_tokens: of a pass of the draft model.
        links: to the other stages, if the model is one of several.
        passed_on: layers before which hidden states are taken for a head beside the last stage.
    """

    def __init__(
        self,
        model: DecoderModel,
        size: KVCacheSize,
        block_size: int,
        max_num_seqs: int,
        draft_model: DecoderModel | Eagle3Head | None = None,
        max_num_batched_tokens: int = 1024,
        links: StageLinks | None = None,
        passed_on: tuple[int, ...] = (),
    ) -> None:
        self._model = model
        self._links = links
        self._passed_on = passed_on
        self._max_model_len = size.max_model_len
        self._block_size = block_size
        self._kv_cache = allocate_kv_cache(size, model.config, block_size, model.dtype, model.device)
        self._block_table = np.zeros((max_num_seqs, -(-size.max_model_len // block_size)), np.int64)
        self._num_blocks = np.zeros(max_num_seqs, np.int64)
        self._sampling = SamplingState(max_num_seqs)
        self._sampler = HostSampler(model, self._sampling, max_num_seqs, size.max_model_len)
        self._batches = HostBatches(model.config, model.dtype, self._sampler.tokens, self._block_table, block_size)
        self._drafter: HostDrafter | None = None
        if draft_model is not None:
            self._drafter = self._drafter_of(draft_model, size, max_num_batched_tokens)

    def _drafter_of(self, model: DecoderModel | Eagle3Head, size: KVCacheSize, budget: int) -> HostDrafter:
        block_table, block_size = self._block_table, self._block_size
        limits = *block_table.shape, size.num_blocks, block_size, budget
        if not isinstance(model, Eagle3Head):
            draft = ModelDraft(model, size, self._sampler, block_table, block_size)
            return HostDrafter(draft, DraftProgress(*limits), self._sampler)
        progress = HeadProgress(*limits, forgets=False)
        layers = model.config.layers_read(self._model.whole)
        head = HeadDraft(model, layers, size, self._sampler, block_table, progress, block_size)
        return HostDrafter(head, progress, self._sampler)

    def warm_up(self) -> None:
        """Run decode rows and a prompt through the model, so that whatever compiles at first use has compiled.

        What it leaves in the cache is overwritten before anyone reads it.
        """
        zero, one = np.zeros(1, np.int64), np.ones(1, np.int64)
        room = self._block_size * len(self._kv_cache[0])
        with torch.inference_mode():
            for length in WARM_UP_LENGTHS:
                self._warm_up(StepRows(zero, zero, np.array([min(length, room)]), zero, zero))
            with for_any_row():
                for blocks, position in WARM_UP_ROWS:
                    start = (len(blocks) - 1) * self._block_size + position % self._block_size
                    if max(blocks) < len(self._kv_cache[0]) and len(blocks) <= self._block_table.shape[1]:
                        self._block_table[0, : len(blocks)] = blocks
                        self._warm_up(StepRows(zero, np.array([start]), one, zero, zero))
            self._block_table[0] = 0

    def _warm_up(self, rows: StepRows) -> None:
        received = (
            None if self._model.stage.is_first else torch.zeros(self._shape_between(rows), dtype=self._model.dtype)
        )
        hidden = self._model.forward(self._batches.batch(rows), self._kv_cache, received=received)
        if self._model.stage.is_last:
            self._model.compute_logits(hidden[-1:])

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> StepResult:
        """Run a step.

        Args:
            plan: which tokens of which slots.
            admitted: the requests of ``plan.admissions``, in their order.

        Returns:
            What the step produced; nothing of a stage that is not the last.
        """
        with torch.inference_mode():
            self._take_admissions(plan, admitted)
            self._sampler.catch_up(plan.rows)
            self._sampler.guess(plan.rows)
            rows = rows_of(plan)
            drafter = self._drafter if plan.follows else None
            drafted = drafter.draft(rows) if drafter is not None and not plan.num_ahead else None
            states = drafter.wanted() if drafter is not None else self._states_passed_on(plan)
            hidden = self._forward(rows, states)
            if not self._model.stage.is_last:
                return NOTHING
            prompt_logprobs = self._sampler.prompt_logprobs(plan.rows, np.cumsum(rows.counts) - rows.counts, hidden)
            samples = samples_of(rows)
            chosen, logprobs = np.zeros(0, np.int64), list[TokenLogprob | None]()
            if len(samples.rows):
                choose = self._choose if self._model.group.is_alone else self._choose_together
                chosen, logprobs = choose(hidden, samples, self._sampler.stays(rows))
            proposed = list[Proposal]()
            if drafter is not None:
                guessed = drafted.token_ids if drafted is not None else guesses_of(plan.rows)
                accepted = drafter.settle(rows, guessed, chosen, states)
                if plan.num_ahead:
                    drafted, proposed = self._look_ahead(drafter, plan, rows, accepted)
            return StepResult(chosen.tolist(), logprobs, prompt_logprobs, drafted, proposed)

    def _look_ahead(
        self, drafter: HostDrafter, plan: StepPlan, rows: StepRows, accepted: Ints
    ) -> tuple[Drafted, list[Proposal]]:
        """Guess for the next step of the same rows."""
        sizes = self._block_size, self._max_model_len
        behind = rows_behind(rows, accepted, self._num_blocks[rows.slots], sizes, plan.num_ahead)
        drafted = drafter.draft(behind)
        return replace(drafted, token_ids=[]), proposals(plan.rows, behind, drafted.token_ids)

    def _states_passed_on(self, plan: StepPlan) -> HiddenStates | None:
        return HiddenStates(self._passed_on) if self._passed_on and plan.follows else None

    def _choose(self, hidden: torch.Tensor, samples: Samples, stays: Ints) -> tuple[Ints, list[TokenLogprob | None]]:
        """A token for each of at least one sample, and log-probabilities where they are wanted."""
        logits = self._model.compute_logits(hidden[torch.from_numpy(samples.tokens)]).float()
        return self._sampler.sample(logits, samples, stays)

    def _choose_together(
        self, hidden: torch.Tensor, samples: Samples, stays: Ints
    ) -> tuple[Ints, list[TokenLogprob | None]]:
        """The same with other ranks, each of which has logits of its part of the vocabulary: those are gathered only
        for samples that take more than the largest.
        """
        count = len(samples.rows)
        chosen, logprobs = np.zeros(count, np.int64), list[TokenLogprob | None]([None] * count)
        likeliest = self._sampling.takes_likeliest(samples.slots, samples.output_indices)
        if not likeliest.all():
            others = samples.those(~likeliest)
            logits = self._model.compute_logits(hidden[torch.from_numpy(others.tokens)]).float()
            chosen[~likeliest], their_logprobs = self._sampler.sample_together(logits, others, stays)
            for index, found in zip(np.flatnonzero(~likeliest).tolist(), their_logprobs, strict=True):
                logprobs[index] = found
        if likeliest.any():
            greedy = samples.those(likeliest)
            chosen[likeliest] = self._model.likeliest(hidden[torch.from_numpy(greedy.tokens)]).numpy()
            self._sampler.note(greedy, chosen[likeliest], stays)
        return chosen, logprobs

    def _take_admissions(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> None:
        for admission, request in zip(plan.admissions, admitted, strict=True):
            self._sampler.admit(admission.slot, np.array(admission.token_ids, np.int64))
            self._num_blocks[admission.slot] = 0
            self._append_blocks(admission.slot, admission.block_ids, admission.num_cached_tokens)
            self._sampling.set(admission.slot, request)
        for new in plan.new_blocks:
            self._append_blocks(new.slot, new.block_ids)

    def _append_blocks(self, slot: int, block_ids: Sequence[int], num_cached_tokens: int | None = None) -> None:
        """Blocks of a slot; of a request that has just taken it, so many tokens of them come from the prefix cache."""
        first = int(self._num_blocks[slot])
        ids = np.array(block_ids, np.int64)
        self._block_table[slot, first : first + len(ids)] = ids
        self._num_blocks[slot] += len(ids)
        if self._drafter is not None:
            self._drafter.progress.append(slot, first, ids, num_cached_tokens)

    def _forward(self, rows: StepRows, states: HiddenStates | None) -> torch.Tensor:
        stage, batch = self._model.stage, self._batches.batch(rows)
        if self._links is None:
            return self._model.forward(batch, self._kv_cache, states)
        received = None
        if not stage.is_first:
            received = self._links.receive(self._shape_between(rows, states), self._model.dtype)
        hidden = self._model.forward(batch, self._kv_cache, states, received)
        if not stage.is_last:
            self._links.send(hidden)
        return hidden

    def _shape_between(self, rows: StepRows, states: HiddenStates | None = None) -> tuple[int, ...]:
        """Of what this stage is handed."""
        count = states.count_before(self._model.stage.layers.start) if states is not None else 0
        return (2 + count, int(rows.counts.sum()), self._model.config.hidden_size)
