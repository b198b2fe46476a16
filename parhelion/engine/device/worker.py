"""The worker of a GPU: hands steps to the device without waiting for them, and lets their ids be read back late.

Everything that a step reads or writes of its requests stays on the device (``DeviceState``), so step N + 1 may be
handed over while step N runs. The host sends one buffer of integers a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import torch

from parhelion.distributed.stages import StageLinks
from parhelion.engine.device.buckets import Buckets
from parhelion.engine.device.drafter import DeviceDrafter, PendingDraft
from parhelion.engine.device.graphs import EagerSteps, GraphCache
from parhelion.engine.device.head import HeadFeatures, HeadStep
from parhelion.engine.device.host_ids import HostIdsPool
from parhelion.engine.device.pending import Pending, WrongGuesses
from parhelion.engine.device.sampling import DeviceSampler
from parhelion.engine.device.stage import PassedOn, StageBuffers
from parhelion.engine.device.state import DeviceState, Update
from parhelion.engine.device.step import DeviceStep, Mode, Step, StepOutputs
from parhelion.engine.device.step_queue import DeviceQueue
from parhelion.engine.drafts.ahead import guesses_of, proposals, rows_behind
from parhelion.engine.drafts.progress import DraftProgress, HeadProgress, accepted_of
from parhelion.engine.host.sampling import HostSampler
from parhelion.engine.kv_storage import KVCacheSize, allocate_kv_cache
from parhelion.engine.messages import AddRequest, TokenLogprob
from parhelion.engine.sampling_state import CHOOSES_ON_HOST, DRAWS, TELLS_PROMPT, SamplingState
from parhelion.engine.step_layout import (
    Bucket,
    StepRows,
    guesses_apart,
    num_ints,
    rows_apart,
    rows_of,
    samples_of,
)
from parhelion.engine.step_result import NOTHING, PendingStep, PromptLogprobs, StepResult
from parhelion.models.decoder import DecoderModel
from parhelion.models.eagle3 import Eagle3Head
from parhelion.ops.resolve import Resolver
from parhelion.platform.streams import work_stream
from parhelion.scheduler import StepPlan

BUFFERS_IN_FLIGHT = 3
"""Host buffers for each of a step's passes, used in turn: a step's own are not touched before the step after the next.
"""


@dataclass(frozen=True)
class DeviceWorkerOptions:
    """Attributes:
    block_size: tokens of a block.
    max_num_seqs: slots.
    max_num_batched_tokens: tokens of the largest step.
    use_graphs: replay captured CUDA graphs instead of launching kernel by kernel.
    num_guesses: that a row may check; 0: nobody guesses.
    """

    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    use_graphs: bool
    num_guesses: int = 0


class DeviceWorker:
    """Executes plans in the order in which they were made, on one stream.

    Of each way of sampling (``Mode``) there may be as many graphs as there are sizes of steps that only decode and, if
    anybody guesses, of those that also check guesses, and one for each pair of sizes of steps with prompts. A draft
    model has as many for its passes. Beside a head, steps that it follows have graphs of their own, which leave it the
    hidden states; they are never of those that only decode, since any of them may be taken for one that checks guesses.

    Args:
        model: with its weights on the device.
        size: of the KV cache.
        options: limits.
        resolver: finds the providers of what a step needs beside the model.
        draft_model: a model or a head that guesses tokens for steps to check; None: nobody does, or the scheduler knows
            somebody.
        links: to the other stages, if the model is one of several; the host tells the first what the last has sampled.
        passed_on: layers before which hidden states are taken for a head beside the last stage.
    """

    def __init__(
        self,
        model: DecoderModel,
        size: KVCacheSize,
        options: DeviceWorkerOptions,
        resolver: Resolver,
        draft_model: DecoderModel | Eagle3Head | None = None,
        links: StageLinks | None = None,
        passed_on: tuple[int, ...] = (),
    ) -> None:
        self._model = model
        self._options = options
        self._device = model.device
        self._stream = work_stream(self._device)
        kv_cache = allocate_kv_cache(size, model.config, options.block_size, model.dtype, self._device)
        self._state = DeviceState(options.max_num_seqs, size.max_model_len, options.block_size, self._device, resolver)
        sampler = DeviceSampler(model.config.vocab_size, model.dtype, resolver)
        # The first of several stages must know where rows begin.
        self._at_bounds = draft_model is not None and links is None
        sizes = options.max_num_seqs, options.max_num_batched_tokens, options.num_guesses
        self._buckets = Buckets(*sizes, "checks" if self._at_bounds else "none", brings_guesses=not self._at_bounds)
        self._draft_buckets = Buckets(*sizes, "all" if self._at_bounds else "none")
        self._between: StageBuffers | None = None
        if links is not None:
            most_tokens, hidden_size = self._buckets.most_tokens, model.config.hidden_size
            self._between = StageBuffers(
                model.stage, links, passed_on, most_tokens, hidden_size, model.dtype, self._device
            )
        self._step = self._followed_step = DeviceStep(model, kv_cache, self._state, sampler, between=self._between)
        if passed_on and not model.stage.is_last:
            passing = PassedOn(passed_on)
            self._followed_step = DeviceStep(model, kv_cache, self._state, sampler, passing, between=self._between)
        self._max_model_len = size.max_model_len
        self._sampling = SamplingState(options.max_num_seqs)
        self._host_sampler = HostSampler(model, self._sampling, options.max_num_seqs, size.max_model_len)
        self._num_blocks = np.zeros(options.max_num_seqs, np.int64)
        num_buffers = BUFFERS_IN_FLIGHT * (1 + options.num_guesses if draft_model is not None else 1)
        largest = max(self._buckets.largest, self._draft_buckets.largest, key=num_ints)
        self._queue = DeviceQueue(self._state, largest, num_buffers, self._stream)
        self._host_ids = HostIdsPool(self._stream, self._device)
        self._graphs = GraphCache(self._queue.ints, self._stream, self._device) if options.use_graphs else None
        self._eager = EagerSteps(self._queue.ints)
        self._runner = self._graphs or self._eager
        self._drafter: DeviceDrafter | None = None
        if isinstance(draft_model, Eagle3Head):
            layers = draft_model.config.layers_read(model.whole)
            features = HeadFeatures(draft_model, layers, self._buckets.most_tokens, self._state)
            self._followed_step = DeviceStep(model, kv_cache, self._state, sampler, features, between=self._between)
            self._drafter = self._head_drafter(draft_model, features, size, sampler)
        elif draft_model is not None:
            self._drafter = self._model_drafter(draft_model, size, sampler)
        self._num_begun = 0
        self._wrong = WrongGuesses(options.max_num_seqs)
        self._pending: deque[Pending] = deque()
        # Steps with guesses that the draft model has not been told the outcome of.
        self._checks: deque[tuple[int, PendingStep, PendingDraft]] = deque()

    def _model_drafter(self, model: DecoderModel, size: KVCacheSize, sampler: DeviceSampler) -> DeviceDrafter:
        kv_cache = allocate_kv_cache(size, model.config, self._options.block_size, model.dtype, self._device)
        step = DeviceStep(model, kv_cache, self._state, sampler, group=self._model.group, checks=False)
        return self._drafter_of(step, DraftProgress(*self._draft_limits(size)))

    def _head_drafter(
        self, head: Eagle3Head, features: HeadFeatures, size: KVCacheSize, sampler: DeviceSampler
    ) -> DeviceDrafter:
        kv_cache = allocate_kv_cache(size, head.config.layer, self._options.block_size, head.dtype, self._device)
        step = HeadStep(head, kv_cache, features, self._state, sampler, self._model.group)
        return self._drafter_of(step, HeadProgress(*self._draft_limits(size), forgets=True))

    def _drafter_of(self, step: Step, progress: DraftProgress) -> DeviceDrafter:
        return DeviceDrafter(step, self._runner, self._queue, self._draft_buckets, progress, self._device)

    def _draft_limits(self, size: KVCacheSize) -> tuple[int, int, int, int, int]:
        o = self._options
        return o.max_num_seqs, self._state.max_blocks, size.num_blocks, o.block_size, o.max_num_batched_tokens

    @property
    def graphs(self) -> GraphCache | None:
        """All captured graphs, if any are used."""
        return self._graphs

    def stay(self) -> None:
        """Let this thread run the steps from now on: it stays on the worker's stream, which others enter every time."""
        self._stream.stay()

    def warm_up(self) -> None:
        """Run a decode row, a prompt and a guess through the model, so that what compiles at first use has compiled."""
        with self._stream.activate():
            for bucket in self._buckets.smallest():
                self._queue.send_padding(bucket)
                for step in dict.fromkeys((self._step, self._followed_step)):
                    for mode in (Mode.GREEDY, Mode.DRAW):
                        step.run(self._queue.ints, bucket, mode)
            if self._drafter is not None:
                self._drafter.warm_up()
            self._stream.synchronize()

    def capture_all(self) -> None:
        """Capture the greedy graphs of all buckets without prompts, the largest first, so that the rest fit in its
        memory.
        """
        if self._graphs is None:
            return
        with self._stream.activate():
            for bucket in self._buckets.one_token_a_row():
                self._queue.send_padding(bucket)
                step = self._followed_step if bucket.verifies else self._step
                self._graphs.run(step, bucket, Mode.GREEDY)
            if self._drafter is not None:
                self._drafter.capture_all()
            self._stream.synchronize()

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> Pending | StepResult:
        """Hand a step to the device.

        Args:
            plan: which tokens of which slots.
            admitted: the requests of ``plan.admissions``, in their order.

        Returns:
            What ``wait`` turns into the step's result; steps must be waited for in order. Nothing of a stage that is
            not the last.
        """
        with self._stream.activate():
            return self._execute(plan, admitted)

    def _execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> Pending | StepResult:
        # Whoever planned it knows the outcome of these steps, on all ranks alike: what is made of it must not depend on
        # when a rank has waited for others.
        self._settle(self._num_begun - plan.num_in_flight)
        self._queue.write(self._take_admissions(plan, admitted))
        rows = self._rows_of(plan)
        asked = self._sampling.asked(rows.slots) if self._model.stage.is_last else 0
        wants_prompts = bool(asked & TELLS_PROMPT and self._sampling.wants_prompt(rows.slots, rows.starts).any())
        if rows.unchecked is not None and (wants_prompts or asked & CHOOSES_ON_HOST):
            plan, rows = self._put_right(plan, rows)
        pending, draft = self._hand_to_device(plan, rows, asked, wants_prompts)
        if draft is not None:
            self._checks.append((self._num_begun, pending, draft))
        self._num_begun += 1
        if self._drafter is None or not plan.num_ahead:
            return pending
        return self._look_ahead(self._drafter, plan, rows, pending.wait())

    def _settle(self, before: int) -> None:
        """Let the draft model know what was right of what it guessed in so many steps; they are over."""
        for pending in self._pending:
            if pending.number < before:
                pending.wait()
        while self._checks and self._checks[0][0] < before:
            _, step, draft = self._checks.popleft()
            step.wait()
            draft.settle()

    def _put_right(self, plan: StepPlan, rows: StepRows) -> tuple[StepPlan, StepRows]:
        """A plan and its rows where they begin indeed. Waits for the steps before it: the host must know as well."""
        self._settle(self._num_begun)
        off = self._wrong.off(rows).tolist()
        put_right = tuple(
            msgspec.structs.replace(row, start=row.start - less, output_index=row.output_index - less, unchecked=0)
            for row, less in zip(plan.rows, off, strict=True)
        )
        plan = msgspec.structs.replace(plan, rows=put_right)
        return plan, self._rows_of(plan)

    def _rows_of(self, plan: StepPlan) -> StepRows:
        """Guesses in rows of their own, unless there is a draft model, which is asked for them by row."""
        return rows_apart(plan) if self._drafter is None else rows_of(plan)

    def _hand_to_device(
        self, plan: StepPlan, rows: StepRows, asked: int, wants_prompts: bool
    ) -> tuple[Pending | StepResult, PendingDraft | None]:
        stage = self._model.stage
        mode = self._mode(rows, asked)
        if self._between is not None and stage.is_first:
            self._queue.write([self._state.told_update(plan.rows)])
        # Behind unchecked guesses a step without any takes the graphs of those that have some.
        draft, step = None, self._followed_step if plan.follows or rows.unchecked is not None else self._step
        apart = self._drafter is None
        verifies = len(rows.slots) > len(plan.rows) if apart else int(rows.samples.max()) > 1
        if verifies:
            self._check_num_guesses(plan)
        if self._drafter is not None and plan.follows and not plan.num_ahead:
            draft = self._drafter.draft(rows, mode)
            self._drafter.progress.follow(rows)
        elif verifies:
            self._queue.write([self._state.guess_update(plan.rows)])
        elif self._drafter is not None and step is not self._step and not plan.follows:
            self._drafter.progress.lose()
        if verifies and not apart:
            rows = guesses_apart(rows)
        bucket = self._buckets.of(rows, verifies or step is not self._step or rows.unchecked is not None)
        self._queue.send(rows, bucket)
        if self._between is not None:
            num_tokens = int(rows.counts.sum())
            self._between.receive(num_tokens, step is not self._step)
        # Of what a graph computes, the hidden states are gone.
        outputs = (self._eager if wants_prompts else self._runner).run(step, bucket, mode)
        if self._between is not None and not stage.is_last:
            self._between.hand_over(num_tokens, step is not self._step)
            return NOTHING, None
        if mode is Mode.HOST or wants_prompts:
            with torch.inference_mode():
                return self._finish_on_host(plan, rows, bucket, outputs, mode, draft), draft
        ids = self._host_ids.take(bucket.num_rows)
        ids.fetch(outputs.token_ids)
        self._take_notes()
        stays = self._host_sampler.stays(rows)
        self._pending.append(Pending(self._num_begun, rows, ids, stays, draft, self._wrong))
        return self._pending[-1], draft

    def _take_notes(self) -> None:
        """Remember what steps have sampled that somebody has waited for: while the device works, not while it waits."""
        while self._pending and self._pending[0].is_over:
            pending = self._pending.popleft()
            pending.note(self._host_sampler)
            self._host_ids.give_back(pending.ids)

    def _look_ahead(self, drafter: DeviceDrafter, plan: StepPlan, rows: StepRows, result: StepResult) -> StepResult:
        """Guess for the next step of the same rows, behind what this one has sampled. Waits for the device twice."""
        accepted = accepted_of(rows, guesses_of(plan.rows), np.array(result.token_ids, np.int64))
        drafter.progress.follow(rows)
        drafter.progress.settle(rows, accepted)
        sizes = self._options.block_size, self._max_model_len
        behind = rows_behind(rows, accepted, self._num_blocks[rows.slots], sizes, plan.num_ahead)
        draft = drafter.draft(behind, self._mode(rows, self._sampling.asked(rows.slots)))
        self._stream.synchronize()
        drafted = draft.read(self._wrong.by_slot)
        proposed = proposals(plan.rows, behind, drafted.token_ids)
        return replace(result, drafted=replace(drafted, token_ids=[]), proposals=proposed)

    def _finish_on_host(
        self,
        plan: StepPlan,
        rows: StepRows,
        bucket: Bucket,
        outputs: StepOutputs,
        mode: Mode,
        draft: PendingDraft | None,
    ) -> StepResult:
        """The rare step that needs the host: penalties, biases, log-probabilities. Waits for everything before it."""
        for pending in self._pending:
            pending.wait()
        self._take_notes()
        counts = np.array([row.num_tokens for row in plan.rows])
        first_tokens = np.cumsum(counts) - counts
        prompt: list[PromptLogprobs] = self._host_sampler.prompt_logprobs(plan.rows, first_tokens, outputs.hidden)
        samples, stays = samples_of(rows), self._host_sampler.stays(rows)
        chosen = outputs.token_ids.cpu().numpy()[samples.rows]
        logprobs: list[TokenLogprob | None] = [None] * len(chosen)
        drafted = draft.read(self._wrong.by_slot) if draft is not None else None
        if mode is Mode.HOST:
            assert outputs.logits is not None, "the host looks at them"
            # Penalties of a row's later samples count its guesses.
            self._host_sampler.guess(plan.rows, drafted.token_ids if drafted is not None else ())
            # Everybody else gets the device's token, as in any other step.
            changes = self._sampling.changes_logits(samples.slots, samples.output_indices)
            if changes.any():
                own = samples.those(changes)
                logits = outputs.logits[torch.from_numpy(own.rows).to(self._device)].float().cpu()
                chosen[changes] = self._host_sampler.choose(logits, own, stays)
            logprobs = self._host_sampler.logprobs(outputs.logits, samples, chosen)
            ids = torch.zeros(bucket.num_rows, dtype=torch.int64)
            ids[torch.from_numpy(samples.rows)] = torch.from_numpy(chosen)
            self._state.store(outputs.sample_index, ids.to(self._device))
        self._host_sampler.note(samples, chosen, stays)
        if draft is not None and drafted is not None:
            wrong = self._wrong.learn(draft, drafted, chosen)
            self._queue.write([self._state.wrong_update(draft.rows.slots, wrong)])
        return StepResult(chosen.tolist(), logprobs, prompt, drafted)

    def _take_admissions(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> list[Update]:
        """What changes in the tables of tokens, blocks and parameters."""
        updates = []
        for admission, request in zip(plan.admissions, admitted, strict=True):
            ids = np.array(admission.token_ids, np.int64)
            self._sampling.set(admission.slot, request)
            self._host_sampler.admit(admission.slot, ids)
            self._num_blocks[admission.slot] = 0
            updates.append(self._state.token_update(admission.slot, ids))
            updates.append(self._state.parameter_update(admission.slot, self._sampling))
            updates.append(self._append_blocks(admission.slot, admission.block_ids, admission.num_cached_tokens))
        return updates + [self._append_blocks(new.slot, new.block_ids) for new in plan.new_blocks]

    def _append_blocks(self, slot: int, block_ids: Sequence[int], num_cached_tokens: int | None = None) -> Update:
        """Blocks of a slot; of a request that has just taken it, so many tokens of them come from the prefix cache."""
        first = int(self._num_blocks[slot])
        self._num_blocks[slot] += len(block_ids)
        if self._drafter is not None:
            self._drafter.progress.append(slot, first, np.array(block_ids, np.int64), num_cached_tokens)
        return self._state.block_update(slot, first, block_ids)

    def _check_num_guesses(self, plan: StepPlan) -> None:
        most, allowed = max(len(row.guesses) for row in plan.rows), self._options.num_guesses
        if most > allowed:
            raise ValueError(
                f"a row has {most} guesses and the worker was made for num_guesses = {allowed}: "
                "give the scheduler's guesser the same limit"
            )

    def _mode(self, rows: StepRows, asked: int) -> Mode:
        """How a step samples, given what any of its rows' requests may ask for."""
        if not asked & (CHOOSES_ON_HOST | DRAWS):
            return Mode.GREEDY
        which = rows.samples != 0
        slots = rows.slots[which]
        if asked & CHOOSES_ON_HOST and self._sampling.needs_host(slots, rows.output_indices[which]).any():
            return Mode.HOST
        if not self._sampling.temperature[slots].any():
            return Mode.GREEDY
        if self._model.group.is_alone:
            return Mode.DRAW
        return self._step.draw_mode(len(slots), self._sampling.draws_among(slots))
