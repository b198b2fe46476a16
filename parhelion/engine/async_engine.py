"""The front end of a served engine: many requests at once from one event loop, each an ``async for``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from parhelion.config import EngineConfig
from parhelion.engine.connect import connect, wait_until_ready
from parhelion.engine.connection import Connection
from parhelion.engine.intake import Intake
from parhelion.engine.messages import (
    AbortRequests,
    EngineFailed,
    EngineInfo,
    FromEngine,
    GetStats,
    Outputs,
    ReplicaStates,
    RequestRejected,
    RequestsLost,
    StatsReply,
)
from parhelion.engine.names import tokenizer_loader
from parhelion.engine.outputs import OutputProcessor
from parhelion.engine.replicas.replica import RestartPolicy
from parhelion.errors import (
    EngineDeadError,
    InvalidRequestError,
    ParhelionError,
    QueueFullError,
)
from parhelion.models.chat_template import import_renderer
from parhelion.models.resolve import resolve_model
from parhelion.models.tokenizer import Tokenizer
from parhelion.types import EngineStats, Prompt, ReplicaState, RequestOutput, SamplingParams

STATS_TIMEOUT_S = 30.0


@dataclass
class _Stream:
    """One request and whoever waits for it."""

    output: RequestOutput
    news: asyncio.Event = field(default_factory=asyncio.Event)
    error: ParhelionError | None = None


def _load_tokenizer(config: EngineConfig, path: Path) -> Tokenizer:
    """The model's, with what renders its chat template.

    Imported by the first conversation instead, that would hold up every stream for a second. And it is imported by this
    thread: two that import the same packages at once may meet them half made.
    """
    tokenizer = tokenizer_loader(config)(path)
    if tokenizer.has_chat_template:
        import_renderer()
    return tokenizer


class AsyncEngine:
    """Made by ``from_config``; every method is for the event loop that made it.

    Attributes:
        tokenizer: the model's.
        info: what the engine has become.
        replicas: those that share the requests, as they are; empty where there is one engine.
    """

    def __init__(self, connection: Connection, tokenizer: Tokenizer, info: EngineInfo, seed: int) -> None:
        self.tokenizer = tokenizer
        self.info = info
        self.replicas: tuple[ReplicaState, ...] = ()
        self._connection = connection
        self._intake = Intake(tokenizer, info, seed)
        self._outputs = OutputProcessor(tokenizer)
        self._streams: dict[str, _Stream] = {}
        self._numbers = count()
        self._stats: dict[int, asyncio.Future[EngineStats]] = {}
        self._death: str | None = None
        self._reader = asyncio.create_task(self._read(), name="engine-reader")

    @classmethod
    async def from_config(
        cls,
        config: EngineConfig,
        *,
        in_process: bool = False,
        load_progress: Callable[[int, int], None] | None = None,
        restarts: RestartPolicy | None = None,
    ) -> AsyncEngine:
        """Start an engine and wait until it is ready.

        Args:
            config: all options.
            in_process: run it in a thread of this process instead of a process of its own.
            load_progress: called with tensors read so far and how many there are.
            restarts: when a replica that has ended is started again; None is what fits the options.

        Raises:
            ModelNotFoundError, CheckpointError, ConfigError, OutOfMemoryError: it cannot start.
            EngineDeadError: it ended while starting.
        """
        path = await asyncio.to_thread(resolve_model, config.model)
        tokenizer_path = path if config.tokenizer is None else resolve_model(config.tokenizer)
        tokenizer_task = asyncio.create_task(asyncio.to_thread(_load_tokenizer, config, tokenizer_path))
        connection = connect(config, path, in_process, restarts)
        try:
            tokenizer = await tokenizer_task
            info = await wait_until_ready(connection, load_progress)
        except BaseException:
            await connection.close()
            raise
        return cls(connection, tokenizer, info, config.seed)

    @property
    def model_name(self) -> str:
        return self.info.model_name

    @property
    def max_model_len(self) -> int:
        return self.info.max_model_len

    @property
    def is_dead(self) -> bool:
        """The engine ended; it serves nothing any more."""
        return self._death is not None

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        whole: bool = False,
    ) -> AsyncIterator[RequestOutput]:
        """Cumulative outputs of a request until it is finished; the last one says so.

        News that come faster than they are read are merged. Closing the iterator aborts the request. Where the replica
        ends that computes it, it begins again on another one as long as no output was yielded.

        Args:
            prompt: text or ids.
            params: how to sample.
            request_id: unique among unfinished requests; None makes one up.
            priority: lower runs first under the priority policy.
            whole: only the last output counts, so that it may begin again even after some.

        Raises:
            InvalidRequestError: the request cannot be served as it stands.
            QueueFullError: too many requests are waiting.
            EngineDeadError: the engine ended.
        """
        stream = await self._start(prompt, params, request_id, priority)
        try:
            while True:
                await stream.news.wait()
                stream.news.clear()
                if stream.error is not None:
                    raise stream.error
                finished = stream.output.finished
                if not whole:
                    self._outputs.pin(stream.output)
                yield replace(stream.output)
                if finished:
                    return
        finally:
            self._drop(stream)

    async def abort(self, request_id: str) -> None:
        """End a request early: its iterator yields what there is, with ``finish_reason`` "abort".

        An id that is unknown or over is ignored.
        """
        stream = self._streams.get(request_id)
        if stream is None or stream.output.finished:
            return
        self._abort_in_engine(stream.output)
        for output in stream.output.outputs:
            if not output.finished:
                output.finish_reason = "abort"
        stream.output.finished = True
        stream.news.set()

    async def stats(self) -> EngineStats:
        """Counts of this moment.

        Raises:
            EngineDeadError: the engine ended, or does not answer.
        """
        self._check_alive()
        number = next(self._numbers)
        future = asyncio.get_running_loop().create_future()
        self._stats[number] = future
        try:
            self._connection.send(GetStats(number))
            stats: EngineStats = await asyncio.wait_for(future, STATS_TIMEOUT_S)
        except TimeoutError:
            raise EngineDeadError(f"the engine has not answered for {STATS_TIMEOUT_S:g} s") from None
        finally:
            self._stats.pop(number, None)
        return stats

    async def shutdown(self) -> None:
        """End the engine and whatever still runs on it."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._die("the engine was shut down")
        await self._connection.close()

    async def _start(self, prompt: Prompt, params: SamplingParams, request_id: str | None, priority: int) -> _Stream:
        # Long texts take a while to tokenize; the event loop has other streams to serve meanwhile.
        if isinstance(prompt, str) and len(prompt) > 4096:
            tokenized = await asyncio.to_thread(self._intake.tokenize, prompt)
        else:
            tokenized = self._intake.tokenize(prompt)
        # From here on nothing else runs before the stream is known: the engine may have ended by now.
        self._check_alive()
        request_id = request_id or f"request-{next(self._numbers)}"
        if request_id in self._streams:
            raise InvalidRequestError(f"a request named {request_id!r} is running already", "request_id")
        requests = self._intake.requests(request_id, tokenized.token_ids, params, priority)
        stream = _Stream(self._outputs.add(request_id, tokenized, params, requests))
        self._streams[request_id] = stream
        try:
            for request in requests:
                self._connection.send(request)
        except BaseException:
            self._drop(stream)
            raise
        return stream

    def _drop(self, stream: _Stream) -> None:
        if self._streams.pop(stream.output.request_id, None) is not None:
            self._abort_in_engine(stream.output)

    def _abort_in_engine(self, output: RequestOutput) -> None:
        unfinished = self._outputs.forget(output)
        if unfinished and not self.is_dead:
            self._connection.send(AbortRequests(unfinished))

    def _check_alive(self) -> None:
        if self._death is not None:
            raise EngineDeadError(f"{self._death}: start it again")

    async def _read(self) -> None:
        while not self.is_dead:
            try:
                self._take(await self._connection.receive())
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self._die(f"the engine's messages cannot be read: {type(error).__name__}: {str(error)[:200]}")

    def _take(self, message: FromEngine) -> None:
        match message:
            case Outputs():
                processed = self._outputs.process(message.tokens)
                for output in processed.changed:
                    if (stream := self._streams.get(output.request_id)) is not None:
                        stream.news.set()
                if processed.to_abort:
                    self._connection.send(AbortRequests(processed.to_abort))
            case RequestRejected():
                self._reject(message)
            case RequestsLost():
                self._begin_again(message)
            case ReplicaStates():
                self.replicas = tuple(message.replicas)
            case StatsReply():
                future = self._stats.get(message.number)
                if future is not None and not future.done():
                    future.set_result(message.stats)
            case EngineFailed():
                self._die(f"the engine failed: {message.message}")

    def _reject(self, message: RequestRejected) -> None:
        output = self._outputs.request_of(message.request_id)
        stream = self._streams.get(output.request_id) if output is not None else None
        if stream is None:
            return
        if message.queue_full:
            stream.error = QueueFullError(message.message)
        else:
            stream.error = InvalidRequestError(message.message, message.param)
        stream.news.set()

    def _begin_again(self, message: RequestsLost) -> None:
        """Send requests again of which nobody has seen anything; the others end with an error."""
        lost = self._outputs.lost(message.request_ids, others_serve=message.others_serve)
        for output in lost.again:
            if (stream := self._streams.get(output.request_id)) is not None:
                stream.news.clear()
        for request in lost.to_send:
            self._connection.send(request)
        for output in lost.given_up:
            if (stream := self._streams.get(output.request_id)) is not None:
                stream.error = EngineDeadError(f"{message.message}: the request is lost, send it again")
                stream.news.set()

    def _die(self, why: str) -> None:
        self._death = self._death or why
        for stream in self._streams.values():
            stream.error = stream.error or EngineDeadError(f"{self._death}: the request is lost, send it again")
            stream.news.set()
        for future in self._stats.values():
            if not future.done():
                future.set_exception(EngineDeadError(self._death))
