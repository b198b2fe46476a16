"""Runs a request's prompts on the engine and keeps the newest output of each for whoever writes the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType

from parhelion.server.engine_client import EngineClient
from parhelion.server.metrics import ServerMetrics
from parhelion.types import RequestOutput, SamplingParams


class MergedOutputs:
    """The outputs of several prompts as one flow.

    Outputs are cumulative, so that only the newest counts: a client that reads slowly skips the ones in between and
    loses nothing, and nothing piles up for it. Leaving the ``async with`` block aborts what has not finished.

    Args:
        engine: where the prompts run.
        prompts: their token ids.
        params: how to sample; the same for all prompts.
        request_id: prefix of the engine's request ids, unique in this process.
        priority: for the scheduler; lower goes first.
        whole: the answer is made of the last outputs only.
        metrics: told of tokens and ends as they happen.
        arrival: ``time.perf_counter()`` when the request came.

    Attributes:
        latest: the newest output of each prompt that has one.
    """

    def __init__(
        self,
        engine: EngineClient,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        *,
        request_id: str,
        priority: int,
        whole: bool,
        metrics: ServerMetrics,
        arrival: float,
    ) -> None:
        self._engine = engine
        self._prompts = prompts
        self._params = params
        self._request_id = request_id
        self._priority = priority
        self._whole = whole
        self._metrics = metrics
        self._arrival = arrival
        self.latest: dict[int, RequestOutput] = {}
        self._changed: dict[int, RequestOutput] = {}
        self._wake = asyncio.Event()
        self._error: BaseException | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._running = len(prompts)

    async def __aenter__(self) -> MergedOutputs:
        self._readers = [asyncio.create_task(self._read(index)) for index in range(len(self._prompts))]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    async def next(self) -> dict[int, RequestOutput]:
        """Outputs that changed since the last call, by prompt; empty once every prompt has finished.

        Raises:
            Exception: what the engine raised for one of the prompts.
        """
        await self._wait()
        if self._error is not None:
            raise self._error
        changed, self._changed = self._changed, {}
        return changed

    async def wait_first(self, timeout_s: float) -> None:
        """Return once an output is there or all have ended, or after ``timeout_s`` seconds; raises as ``next`` does."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wait()
        except TimeoutError:
            return
        if self._error is not None:
            raise self._error

    async def _wait(self) -> None:
        while not self._changed and self._running and self._error is None:
            self._wake.clear()
            await self._wake.wait()

    def fail(self, error: Exception) -> None:
        """End the flow: ``next`` raises ``error`` from now on."""
        self._error = self._error or error
        self._wake.set()

    async def _read(self, index: int) -> None:
        clock = _TokenClock(self._metrics, self._arrival, self._params.n)
        try:
            async with _closing(self._generate(index)) as stream:
                async for output in stream:
                    clock.observe(output)
                    self.latest[index] = self._changed[index] = output
                    self._wake.set()
        except Exception as error:
            self.fail(error)
        finally:
            clock.close()
            self._running -= 1
            self._wake.set()

    def _generate(self, index: int) -> AsyncIterator[RequestOutput]:
        return self._engine.generate(
            {"prompt_token_ids": self._prompts[index]},
            self._params,
            request_id=f"{self._request_id}-{index}",
            priority=self._priority,
            whole=self._whole,
        )


@asynccontextmanager
async def _closing(stream: AsyncIterator[RequestOutput]) -> AsyncIterator[AsyncIterator[RequestOutput]]:
    """Close the iterator, if it can be closed, when the block ends: that aborts what has not finished."""
    try:
        yield stream
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()


class _TokenClock:
    """Observes one prompt's latencies and ends."""

    def __init__(self, metrics: ServerMetrics, arrival: float, n: int) -> None:
        self._metrics = metrics
        self._arrival = arrival
        self._num_tokens = [0] * n
        self._last = [arrival] * n
        self._open = set(range(n))

    def observe(self, output: RequestOutput) -> None:
        now = time.perf_counter()
        for completion in output.outputs:
            index = completion.index
            new = len(completion.token_ids) - self._num_tokens[index]
            if new > 0:
                self._observe_tokens(index, new, now)
            if completion.finish_reason is not None and index in self._open:
                self._open.discard(index)
                self._metrics.requests.labels(completion.finish_reason).inc()
                if not self._open:
                    self._metrics.e2e_request_latency.observe(now - self._arrival)

    def _observe_tokens(self, index: int, new: int, now: float) -> None:
        if not self._num_tokens[index]:
            self._metrics.time_to_first_token.observe(now - self._arrival)
        else:
            for _ in range(new):
                self._metrics.inter_token_latency.observe((now - self._last[index]) / new)
        self._num_tokens[index] += new
        self._last[index] = now

    def close(self) -> None:
        """Completions still open were given up."""
        if self._open:
            self._metrics.requests.labels("abort").inc(len(self._open))
