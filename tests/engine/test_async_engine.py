"""The front end of a served engine, before an engine that a test plays itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from parhelion.engine.async_engine import AsyncEngine
from parhelion.engine.messages import (
    AbortRequests,
    AddRequest,
    EngineFailed,
    FromEngine,
    Outputs,
    RequestRejected,
    ToEngine,
    TokenOutput,
)
from parhelion.errors import EngineDeadError, InvalidRequestError, QueueFullError
from parhelion.models.tokenizer import Tokenizer
from parhelion.types import RequestOutput, SamplingParams

from .requests import engine_info

LONG = "a" * 5000
"""A text that is tokenized beside the event loop."""


class PlayedConnection:
    """The engine's part is the test's.

    Attributes:
        sent: what the front end has sent.
    """

    def __init__(self) -> None:
        self.sent: list[ToEngine] = []
        self._answers: asyncio.Queue[FromEngine] = asyncio.Queue()

    def send(self, message: ToEngine) -> None:
        self.sent.append(message)

    async def receive(self) -> FromEngine:
        return await self._answers.get()

    async def close(self) -> None:
        return

    async def answer(self, message: FromEngine) -> None:
        """Let the front end take in a message."""
        self._answers.put_nowait(message)
        for _ in range(3):
            await asyncio.sleep(0)

    @property
    def added(self) -> list[str]:
        """Names of the engine requests that were sent."""
        return [message.request_id for message in self.sent if isinstance(message, AddRequest)]

    @property
    def aborted(self) -> list[str]:
        """Names of those that were aborted."""
        return [name for message in self.sent if isinstance(message, AbortRequests) for name in message.request_ids]


class GatedTokenizer:
    """Tokenizes texts once it may.

    Attributes:
        gate: that it waits for.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.gate = threading.Event()
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        assert self.gate.wait(10)
        return self._tokenizer.encode(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


Play = Callable[[AsyncEngine, PlayedConnection, GatedTokenizer], Coroutine[Any, Any, None]]


@pytest.fixture
def run(byte_tokenizer: Tokenizer) -> Callable[[Play], None]:
    """Plays with an engine that is shut down afterwards."""

    async def play(test: Play) -> None:
        connection, tokenizer = PlayedConnection(), GatedTokenizer(byte_tokenizer)
        info = engine_info(max_model_len=10_000)
        engine = AsyncEngine(connection, tokenizer, info, seed=0)  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(10):
                await test(engine, connection, tokenizer)
        finally:
            tokenizer.gate.set()
            await engine.shutdown()

    return lambda test: asyncio.run(play(test))


async def last_of(outputs: AsyncIterator[RequestOutput]) -> RequestOutput:
    """The last output of a request."""
    latest = None
    async for output in outputs:
        latest = output
    assert latest is not None
    return latest


def started(engine: AsyncEngine, prompt: Any, name: str | None = None, **params: Any) -> asyncio.Task[RequestOutput]:
    """A request that somebody waits for."""
    return asyncio.create_task(last_of(engine.generate(prompt, SamplingParams(**params), request_id=name)))


async def pause() -> None:
    await asyncio.sleep(0.01)


def test_a_request_whose_text_is_tokenized_while_the_engine_ends_is_refused(run: Callable[[Play], None]) -> None:
    async def play(engine: AsyncEngine, connection: PlayedConnection, tokenizer: GatedTokenizer) -> None:
        request = started(engine, LONG)
        await pause()
        await connection.answer(EngineFailed("RuntimeError", "the device is gone"))
        tokenizer.gate.set()
        with pytest.raises(EngineDeadError, match="the device is gone"):
            await request
        assert not connection.added

    run(play)


def test_of_two_requests_of_one_name_whose_texts_are_tokenized_at_once_the_later_is_refused(
    run: Callable[[Play], None],
) -> None:
    async def play(engine: AsyncEngine, connection: PlayedConnection, tokenizer: GatedTokenizer) -> None:
        requests = [started(engine, LONG, "same", max_tokens=1) for _ in range(2)]
        await pause()
        tokenizer.gate.set()
        # Once the first has been answered the name is free again.
        while not (connection.added and any(each.done() for each in requests)):
            await pause()
        (name,) = connection.added
        await connection.answer(Outputs([TokenOutput(name, 70, "length")]))
        results = await asyncio.gather(*requests, return_exceptions=True)
        [served] = [each for each in results if isinstance(each, RequestOutput)]
        [refused] = [each for each in results if isinstance(each, InvalidRequestError)]
        assert served.outputs[0].token_ids == [70]
        assert refused.param == "request_id"

    run(play)


def test_a_late_refusal_does_not_meet_the_next_request_of_the_name(run: Callable[[Play], None]) -> None:
    async def play(engine: AsyncEngine, connection: PlayedConnection, tokenizer: GatedTokenizer) -> None:
        prompt = {"prompt_token_ids": [5, 6]}
        left = started(engine, prompt, "same")
        await pause()
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        second = started(engine, prompt, "same", max_tokens=1)
        await pause()
        early, late = connection.added
        assert connection.aborted == [early]
        await connection.answer(RequestRejected(early, True, "too many are waiting", None))
        await connection.answer(Outputs([TokenOutput(late, 70, "length")]))
        assert (await second).outputs[0].token_ids == [70]

    run(play)


def test_what_cannot_be_sent_leaves_no_trace(run: Callable[[Play], None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(engine: AsyncEngine, connection: PlayedConnection, tokenizer: GatedTokenizer) -> None:
        prompt = {"prompt_token_ids": [5, 6]}
        send = connection.send

        def refuse_second(message: ToEngine) -> None:
            if len(connection.added) == 1 and isinstance(message, AddRequest):
                raise TypeError("it cannot be sent")
            send(message)

        with monkeypatch.context() as patch:
            patch.setattr(connection, "send", refuse_second)
            with pytest.raises(TypeError, match="it cannot be sent"):
                await started(engine, prompt, "same", n=2)
        [first] = connection.added
        assert first in connection.aborted
        again = started(engine, prompt, "same", max_tokens=1)
        await pause()
        await connection.answer(Outputs([TokenOutput(connection.added[-1], 70, "length")]))
        assert (await again).outputs[0].token_ids == [70]

    run(play)


def test_of_a_request_of_which_one_completion_is_refused_the_others_are_aborted(run: Callable[[Play], None]) -> None:
    async def play(engine: AsyncEngine, connection: PlayedConnection, tokenizer: GatedTokenizer) -> None:
        request = started(engine, {"prompt_token_ids": [5, 6]}, n=3)
        await pause()
        await connection.answer(RequestRejected(connection.added[2], True, "too many are waiting", None))
        with pytest.raises(QueueFullError, match="too many"):
            await request
        assert set(connection.aborted) >= set(connection.added[:2])

    run(play)


def test_whoever_waits_hears_that_the_engine_failed_and_so_does_whoever_comes_later(
    run: Callable[[Play], None],
) -> None:
    async def play(engine: AsyncEngine, connection: PlayedConnection, tokenizer: GatedTokenizer) -> None:
        prompt = {"prompt_token_ids": [5, 6]}
        waiting = [started(engine, prompt) for _ in range(3)]
        counts = asyncio.create_task(engine.stats())
        await pause()
        await connection.answer(EngineFailed("RuntimeError", "the device is gone"))
        for each in (*waiting, counts, started(engine, prompt)):
            with pytest.raises(EngineDeadError, match="the device is gone"):
                await each
        assert engine.is_dead

    run(play)
