"""An application over a fake engine, reached in process or over the loopback."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass

import httpx
import pytest

from parhelion.config import ServerConfig
from parhelion.server.app import create_app
from parhelion.server.listener import bind
from parhelion.server.run import StopSignals, serve_engine

from .fake_engine import FakeEngine


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@asynccontextmanager
async def client_of(engine: FakeEngine, config: ServerConfig | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application in this process."""
    transport = httpx.ASGITransport(create_app(engine, config or ServerConfig()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as client:
        yield client


@pytest.fixture
async def client(engine: FakeEngine, anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(engine) as client:
        yield client


@dataclass
class LiveServer:
    """A server in a thread: its address, and its end as a signal would bring it."""

    url: str
    engine: FakeEngine
    thread: threading.Thread
    _loop: asyncio.AbstractEventLoop
    _signals: StopSignals

    def signal(self) -> None:
        """What SIGTERM does."""
        self._loop.call_soon_threadsafe(self._signals.note)


ServerFactory = Callable[..., AbstractContextManager[LiveServer]]


@contextmanager
def live_server(engine: FakeEngine, config: ServerConfig | None = None) -> Iterator[LiveServer]:
    """A real server on a free port; it is ended at once when the block ends."""
    config = config or ServerConfig(port=0)
    started: list[LiveServer] = []
    ready = threading.Event()

    async def serve() -> None:
        signals = StopSignals()
        with bind("127.0.0.1", 0) as listener:

            def on_ready(url: str) -> None:
                loop = asyncio.get_running_loop()
                started.append(LiveServer(url, engine, threading.current_thread(), loop, signals))
                ready.set()

            await serve_engine(engine, config, listener, on_ready, signals)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(20), "the server did not start"
    server = started[0]
    try:
        yield server
    finally:
        for _ in range(2):
            if thread.is_alive():
                server.signal()
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"
