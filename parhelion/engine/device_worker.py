"""The worker of a GPU: hands steps to the device without waiting for them, and lets their ids be read back late.

Everything that a step reads or writes of its requests stays on the device (``DeviceState``), so step N + 1 may be
handed over while step N runs. The host sends one buffer of integers a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from parhelion.engine.device_sampling import DeviceSampler
from parhelion.engine.device_state import DeviceState, Update, merged
from parhelion.engine.device_step import DeviceStep, Mode, StepOutputs
from parhelion.engine.graphs import GraphCache
from parhelion.engine.host_sampling import HostSampler
from parhelion.engine.kv_storage import KVCacheSize, allocate_kv_cache
from parhelion.engine.messages import AddRequest
from parhelion.engine.sampling_state import NO_LOGPROBS, SamplingState
from parhelion.engine.step_layout import (
    Bucket,
    Ints,
    Samples,
    StepRows,
    buckets_up_to,
    num_ints,
    pack,
    pad_to,
    rows_of,
    samples_of,
)
from parhelion.engine.step_result import PromptLogprobs, StepResult
from parhelion.models.decoder import DecoderModel
from parhelion.ops.resolve import Resolver
from parhelion.platform.streams import Event, pinned, record_event, work_stream
from parhelion.scheduler import StepPlan

BUFFERS_IN_FLIGHT = 3
"""Host buffers that are used in turn: a step's own is not touched before the step after the next."""

ROOM_FOR_UPDATES = 1 << 17
"""Integers behind a step's own fields for the prompts, blocks and parameters of new requests; more go separately."""

MIXED_ROWS = (1, 4, 16, 64)
"""Rows that steps with prompts in them are padded to, below the most that may run."""


@dataclass(frozen=True)
class DeviceWorkerOptions:
    """Attributes:
    block_size: tokens of a block.
    max_num_seqs: slots.
    max_num_batched_tokens: tokens of the largest step.
    use_graphs: replay captured CUDA graphs instead of launching kernel by kernel.
    """

    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    use_graphs: bool


class DeviceWorker:
    """Executes plans in the order in which they were made, on one stream.

    Args:
        model: with its weights on the device.
        size: of the KV cache.
        options: limits.
        resolver: finds the providers of sampling.
    """

    def __init__(
        self, model: DecoderModel, size: KVCacheSize, options: DeviceWorkerOptions, resolver: Resolver
    ) -> None:
        self._model = model
        self._options = options
        self._device = model.device
        self._stream = work_stream(self._device)
        kv_cache = allocate_kv_cache(size, model.config, options.block_size, model.dtype, self._device)
        self._state = DeviceState(options.max_num_seqs, size.max_model_len, options.block_size, self._device)
        self._step = DeviceStep(
            model,
            kv_cache,
            self._state,
            DeviceSampler(model.config.vocab_size, model.dtype, resolver),
            options.block_size,
        )
        self._sampling = SamplingState(options.max_num_seqs)
        self._host_sampler = HostSampler(model, self._sampling, options.max_num_seqs, size.max_model_len)
        self._num_blocks = np.zeros(options.max_num_seqs, np.int64)
        self._decode_sizes = buckets_up_to(options.max_num_seqs)
        self._mixed_rows = (*(rows for rows in MIXED_ROWS if rows < options.max_num_seqs), options.max_num_seqs)
        self._token_sizes = tuple(size for size in buckets_up_to(options.max_num_batched_tokens) if size >= 8) or (
            options.max_num_batched_tokens,
        )
        largest = Bucket(options.max_num_seqs, options.max_num_batched_tokens)
        room = num_ints(largest) + ROOM_FOR_UPDATES
        self._host_buffers = [pinned(room, self._device) for _ in range(BUFFERS_IN_FLIGHT)]
        self._copied: list[Event | None] = [None] * BUFFERS_IN_FLIGHT
        self._ints = torch.zeros(room, dtype=torch.int32, device=self._device)
        self._turn = 0
        self._graphs = GraphCache(self._step, self._ints, self._stream, self._device) if options.use_graphs else None
        self._last: _Pending | None = None

    @property
    def graphs(self) -> GraphCache | None:
        """The captured graphs, if any are used."""
        return self._graphs

    def warm_up(self) -> None:
        """Run a decode row and a prompt through the model, so that what compiles at first use has compiled."""
        with torch.inference_mode(), self._stream.activate():
            for bucket in (Bucket.decoding(1), Bucket(self._mixed_rows[0], self._token_sizes[0])):
                self._send_padding(bucket)
                for mode in (Mode.GREEDY, Mode.DRAW):
                    self._step.run(self._ints, bucket, mode)
            self._stream.synchronize()

    def capture_all(self) -> None:
        """Capture the greedy graphs of all decoding buckets, the largest first, so that the rest fit in its memory."""
        if self._graphs is None:
            return
        with torch.inference_mode(), self._stream.activate():
            for rows in reversed(self._decode_sizes):
                bucket = Bucket.decoding(rows)
                self._send_padding(bucket)
                self._graphs.run(bucket, Mode.GREEDY)
            self._stream.synchronize()

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> _Pending | StepResult:
        """Hand a step to the device.

        Args:
            plan: which tokens of which slots.
            admitted: the requests of ``plan.admissions``, in their order.

        Returns:
            What ``wait`` turns into the step's result; steps must be waited for in order.
        """
        with torch.inference_mode(), self._stream.activate():
            return self._execute(plan, admitted)

    def _execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> _Pending | StepResult:
        updates = self._take_admissions(plan, admitted)
        rows = rows_of(plan)
        bucket = self._bucket(rows)
        mode = self._mode(rows)
        self._send(rows, bucket, updates)
        outputs = self._compute(bucket, mode)
        wants_prompts = (self._sampling.prompt_logprobs[rows.slots] != NO_LOGPROBS).any()
        if mode is Mode.HOST or wants_prompts:
            return self._finish_on_host(plan, rows, bucket, outputs, mode)
        ids = pinned(bucket.num_rows, self._device)
        ids.copy_(outputs.token_ids, non_blocking=True)
        done = record_event(self._device)
        self._last = _Pending(ids, samples_of(rows), done, self._host_sampler.stays(rows), self._host_sampler)
        return self._last

    def _compute(self, bucket: Bucket, mode: Mode) -> StepOutputs:
        if self._graphs is None:
            return self._step.run(self._ints, bucket, mode)
        return self._graphs.run(bucket, mode)

    def _finish_on_host(
        self, plan: StepPlan, rows: StepRows, bucket: Bucket, outputs: StepOutputs, mode: Mode
    ) -> StepResult:
        """The rare step that needs the host: penalties, biases, log-probabilities. Waits for everything before it."""
        if self._last is not None:
            self._last.wait()
        ends = np.cumsum(rows.counts)
        prompt: list[PromptLogprobs] = self._host_sampler.prompt_logprobs(plan.rows, ends - rows.counts, outputs.hidden)
        samples, stays = samples_of(rows), self._host_sampler.stays(rows)
        if mode is not Mode.HOST:
            chosen = outputs.token_ids.cpu().numpy()[samples.rows]
            self._host_sampler.note(samples, chosen, stays)
            return StepResult(chosen.tolist(), [None] * len(chosen), prompt)
        sampling = torch.from_numpy(samples.rows)
        logits = outputs.logits[sampling.to(self._device)].float().cpu()
        chosen, logprobs = self._host_sampler.sample(logits, samples, stays)
        ids = torch.zeros(bucket.num_rows, dtype=torch.int64)
        ids[sampling] = torch.from_numpy(chosen)
        self._step.store(self._ints, bucket, ids.to(self._device))
        return StepResult(chosen.tolist(), logprobs, prompt)

    def _take_admissions(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> tuple[list[Update], ...]:
        tokens, blocks, parameters = [], [], []
        for admission, request in zip(plan.admissions, admitted, strict=True):
            ids = np.array(admission.token_ids, np.int64)
            self._sampling.set(admission.slot, request)
            self._host_sampler.admit(admission.slot, ids)
            self._num_blocks[admission.slot] = 0
            tokens.append(self._state.token_update(admission.slot, ids))
            parameters.append(self._state.parameter_update(admission.slot, self._sampling))
            blocks.append(self._append_blocks(admission.slot, admission.block_ids))
        blocks += [self._append_blocks(new.slot, new.block_ids) for new in plan.new_blocks]
        return tokens, blocks, parameters

    def _append_blocks(self, slot: int, block_ids: Sequence[int]) -> Update:
        first = int(self._num_blocks[slot])
        self._num_blocks[slot] += len(block_ids)
        return self._state.block_update(slot, first, np.array(block_ids, np.int64))

    def _bucket(self, rows: StepRows) -> Bucket:
        num_rows, num_tokens = len(rows.slots), int(rows.counts.sum())
        if num_rows == num_tokens:
            size = pad_to(num_rows, self._decode_sizes)
            return Bucket.decoding(size)
        return Bucket(pad_to(num_rows, self._mixed_rows), pad_to(num_tokens, self._token_sizes))

    def _mode(self, rows: StepRows) -> Mode:
        slots = rows.slots[rows.samples != 0]
        if self._sampling.needs_host(slots, rows.output_indices[rows.samples != 0]):
            return Mode.HOST
        return Mode.GREEDY if not self._sampling.temperature[slots].any() else Mode.DRAW

    def _send(self, rows: StepRows, bucket: Bucket, updates: tuple[list[Update], ...]) -> None:
        """Copy a step's fields and the entries of changed tables to the device, and write the entries."""
        tables = (self._state.tokens, self._state.block_table, self._state.parameters)
        entries = [merged(each) for each in updates]
        buffer = self._next_buffer()
        host = buffer.numpy()
        end = pack(rows, bucket, host, self._state.spare_slot, self._state.spare_position)
        behind = np.concatenate([each.flat() for each in entries])
        fits = end + len(behind) <= len(host)
        if fits:
            host[end : end + len(behind)] = behind
            end += len(behind)
        self._ints[:end].copy_(buffer[:end], non_blocking=True)
        self._copied[self._turn] = record_event(self._device)
        written = self._ints[end - len(behind) : end] if fits else torch.from_numpy(behind).to(self._device)
        for table, each in zip(tables, entries, strict=True):
            count = len(each.offsets)
            if count:
                table.view(-1)[written[:count].long()] = written[count : 2 * count]
            written = written[2 * count :]

    def _next_buffer(self) -> torch.Tensor:
        """The host buffer whose turn it is, once the device has copied the step that was in it."""
        self._turn = (self._turn + 1) % BUFFERS_IN_FLIGHT
        copied = self._copied[self._turn]
        if copied is not None:
            copied.synchronize()
        return self._host_buffers[self._turn]

    def _send_padding(self, bucket: Bucket) -> None:
        none = np.zeros(0, np.int64)
        self._send(StepRows(none, none, none, none, none), bucket, ([], [], []))


class _Pending:
    """A step on its way; ``wait`` blocks until the device has got there."""

    def __init__(self, ids: torch.Tensor, samples: Samples, done: Event, stays: Ints, host: HostSampler) -> None:
        self._ids = ids
        self._samples = samples
        self._done = done
        self._stays = stays
        self._host = host
        self._result: StepResult | None = None

    def wait(self) -> StepResult:
        """The step's result."""
        if self._result is None:
            self._done.synchronize()
            chosen = self._ids.numpy()[self._samples.rows].astype(np.int64)
            self._host.note(self._samples, chosen, self._stays)
            self._result = StepResult(chosen.tolist(), [None] * len(chosen), [])
        return self._result
