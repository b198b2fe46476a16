"""The engine core: scheduler and worker, with the planning of step N + 1 overlapping the execution of step N."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

from parhelion.engine.messages import AddRequest, TokenLogprob, TokenOutput
from parhelion.engine.step_result import Drafted, PendingStep, StepResult
from parhelion.engine.step_watch import StepWatch
from parhelion.scheduler import Request, Scheduler, SchedulerConfig, StepPlan
from parhelion.speculative import Speculator
from parhelion.types import EngineStats


class StepExecutor(Protocol):
    """Whoever runs a planned step: a worker, or a stand-in that computes nothing.

    A worker whose device computes on its own returns before the step is done, so that the next one can be handed over.
    """

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> PendingStep: ...


class Peers(Protocol):
    """Other ranks that run every step as well."""

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> None:
        """Let them run a step; does not wait for it."""
        ...

    def check(self) -> None:
        """Raise what ended one of them, if any has ended."""
        ...

    def close(self) -> None:
        """End them."""
        ...


class EngineCore:
    """Requests in, tokens out; not thread-safe, one caller drives it.

    Args:
        scheduler_config: limits. With several groups of requests a step of each is under way.
        worker: runs the steps, on a thread of its own.
        overlap: plan a step ahead; not while guesses are made for which the last step's tokens must be known.
        speculation: guesses tokens ahead; None: nobody does.
        thread: where the steps run, one thread; the core ends it. None makes one.
        peers: the other ranks, which the core ends; None: the worker is alone.
        watch: sees that steps end; the core ends it. None: nobody does.
    """

    def __init__(
        self,
        scheduler_config: SchedulerConfig,
        worker: StepExecutor,
        *,
        overlap: bool = True,
        speculation: Speculator | None = None,
        thread: ThreadPoolExecutor | None = None,
        peers: Peers | None = None,
        watch: StepWatch | None = None,
    ) -> None:
        self._scheduler = Scheduler(scheduler_config, speculation)
        self._speculation = speculation
        self._worker = worker
        self._peers = peers
        self._watch = watch or StepWatch(0)
        self._requests: dict[str, AddRequest] = {}
        self._prompt_logprobs: dict[str, list[TokenLogprob | None]] = {}
        self._in_flight: deque[tuple[StepPlan, Future[PendingStep], float]] = deque()
        self._last_done = 0.0
        # Tells who guesses what the last step took.
        self._untold: Callable[[], None] | None = None
        self._num_groups = scheduler_config.num_groups
        self._overlap = overlap
        self._thread = thread or ThreadPoolExecutor(1, thread_name_prefix="worker")

    def add(self, request: AddRequest) -> None:
        """Queue a request.

        Raises:
            QueueFullError: too many are waiting.
            InvalidRequestError: it can never run.
        """
        self._scheduler.add(
            Request(
                request_id=request.request_id,
                prompt_token_ids=request.prompt_token_ids,
                max_tokens=request.max_tokens,
                stop_token_ids=frozenset(request.stop_token_ids),
                priority=request.priority,
                arrival=request.arrival,
                use_prefix_cache_lookup=request.params.prompt_logprobs is None,
            )
        )
        self._requests[request.request_id] = request

    def abort(self, request_id: str) -> bool:
        """Forget a request; its blocks are free at once. False if it is unknown or over."""
        self._forget(request_id)
        return self._scheduler.abort(request_id)

    @property
    def has_work(self) -> bool:
        """There are unfinished requests or steps in flight."""
        return bool(self._in_flight) or self._scheduler.has_unfinished

    def step(self) -> list[TokenOutput]:
        """Keep the worker busy and return the tokens of the oldest step, waiting for it to end.

        Raises:
            Exception: whatever the worker raised, now and in every later call: the core is of no use after that.
        """
        with self._watch:
            return self._step()

    def _step(self) -> list[TokenOutput]:
        speculation = self._speculation
        while len(self._in_flight) < self._most_in_flight:
            plan = self._next_plan()
            if plan is None:
                break
            admitted = [self._requests[admission.request_id] for admission in plan.admissions]
            began = time.perf_counter()
            if self._peers is not None:
                self._peers.execute(plan, admitted)
            self._in_flight.append((plan, self._thread.submit(self._worker.execute, plan, admitted), began))
        if not self._in_flight:
            return []
        plan, future, began = self._in_flight[0]
        pending = future.result()
        # While the device works: until the next step is handed over it has nothing to do.
        self._tell_speculation()
        result = pending.wait()
        # Not before: whoever is interrupted while it waits may go on with another call.
        self._in_flight.popleft()
        done = time.perf_counter()
        outputs = self._outputs(plan, result)
        if speculation is not None:
            # What a step took: from when the one before it ended, unless there was nothing to do then.
            seconds, ahead = done - (self._last_done or began), began < self._last_done
            self._last_done = done if self.has_work else 0.0
            self._untold = partial(_tell, speculation, plan, len(outputs), seconds, result.drafted, ahead)
        return outputs

    def _tell_speculation(self) -> None:
        untold, self._untold = self._untold, None
        if untold is not None:
            untold()

    @property
    def _most_in_flight(self) -> int:
        """Steps that may be under way now."""
        return self._num_groups + self._plans_ahead

    @property
    def _plans_ahead(self) -> bool:
        return self._overlap and (self._speculation is None or self._speculation.plans_ahead)

    def _next_plan(self) -> StepPlan | None:
        """Of several groups one step more than there are may be planned, whose tokens the oldest step is sampling.
        Before it come those that need not wait.
        """
        if self._num_groups == 1:
            return self._scheduler.schedule()
        plan = self._scheduler.schedule() if len(self._in_flight) < self._num_groups else None
        return self._scheduler.schedule(ahead=True) if plan is None and self._plans_ahead else plan

    def _outputs(self, plan: StepPlan, result: StepResult) -> list[TokenOutput]:
        self._collect_prompt_logprobs(result)
        drafted = result.drafted.token_ids if result.drafted is not None else ()
        updates = self._scheduler.update(plan, result.token_ids, drafted)
        outputs = []
        for update in updates:
            prompt_logprobs = self._prompt_logprobs.pop(update.request_id, None) if self._prompt_logprobs else None
            outputs.append(
                TokenOutput(
                    update.request_id,
                    update.token_id,
                    update.finish_reason,
                    update.stop_token_id,
                    result.logprobs[update.sample],
                    [item for item in prompt_logprobs if item is not None] if prompt_logprobs else None,
                    update.num_cached_tokens,
                )
            )
            if update.finish_reason is not None:
                self._forget(update.request_id)
        for each in result.proposals:
            if self._speculation is not None and each.request_id in self._requests:
                self._speculation.hear(each.request_id, each.num_known, each.token_ids)
        return outputs

    def _collect_prompt_logprobs(self, result: StepResult) -> None:
        for chunk in result.prompt_logprobs:
            request = self._requests.get(chunk.request_id)
            if request is None:
                continue
            collected = self._prompt_logprobs.setdefault(chunk.request_id, [None] * len(request.prompt_token_ids))
            collected[chunk.first_position : chunk.first_position + len(chunk.logprobs)] = chunk.logprobs

    def _forget(self, request_id: str) -> None:
        self._requests.pop(request_id, None)
        self._prompt_logprobs.pop(request_id, None)

    def stats(self) -> EngineStats:
        """The scheduler's counts, what guesses gain, and the graphs of a worker that has any."""
        stats = self._scheduler.stats()
        if self._speculation is not None:
            self._tell_speculation()
            stats = replace(stats, speculation_gain=self._speculation.gain)
        graphs = getattr(self._worker, "graphs", None)
        if graphs is None:
            return stats
        return replace(stats, num_graphs=graphs.num_graphs, graph_bytes=graphs.memory_bytes)

    def check(self) -> None:
        """Raise what ended another rank, if any has ended; a step would notice by itself."""
        if self._peers is not None:
            self._peers.check()

    def check_integrity(self) -> None:
        """Raise if any of the scheduler's invariants is broken."""
        self._scheduler.check_integrity()

    def close(self) -> None:
        """Let the steps in flight end and stop the worker's thread and the other ranks."""
        if self._peers is not None:
            # What the other ranks were told to compute, this one computes as well: they wait for it.
            self._await_steps()
        self._thread.shutdown(wait=True, cancel_futures=self._peers is None)
        if self._peers is not None:
            graphs = getattr(self._worker, "graphs", None)
            if graphs is not None:
                graphs.clear()
            self._peers.close()
        self._watch.close()

    def _await_steps(self) -> None:
        """Let the device finish what it was handed: other ranks wait for its part, and it reads what they share."""
        for _, future, _ in self._in_flight:
            # Nobody asks for its tokens any more.
            with suppress(Exception):
                future.result().wait()


def _tell(
    speculation: Speculator, plan: StepPlan, num_outputs: int, seconds: float, made: Drafted | None, ahead: bool
) -> None:
    """Let who guesses know what a step took and gained, unless there were prompts in it."""
    if plan.admissions or not all(row.samples for row in plan.rows):
        return
    drafted = (made.num_tokens, made.seconds) if made is not None else None
    # A step behind guesses is no sample of those that know their places.
    ahead = ahead and not any(row.unchecked for row in plan.rows)
    speculation.observe(len(plan.rows), plan.num_tokens, num_outputs, seconds, drafted, ahead)
