"""A server's life: take the port, start the engine, serve, drain, end."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn

from parhelion.config import EngineConfig, ServerConfig
from parhelion.errors import ConfigError
from parhelion.platform.garbage import keep_for_good
from parhelion.server.admission import Admission
from parhelion.server.app import build_context, create_application
from parhelion.server.engine_client import EngineClient
from parhelion.server.listener import allow_open_files, bind, listen, url_of
from parhelion.server.stats_log import log_stats

if TYPE_CHECKING:
    from parhelion.engine.async_engine import AsyncEngine

LoadProgressCallback = Callable[[int, int], None]

logger = logging.getLogger("parhelion.server")

KEEP_ALIVE_S = 75
"""Seconds that a connection may be idle between two requests: longer than balancers (60 s as a rule) and clients keep
theirs. Whoever sends a request just when this side closes sees an error, and may not send it again."""
_CLOSE_S = 2
"""Seconds for the last bytes to reach the clients once nothing runs any more."""


@dataclass(frozen=True)
class ReadyInfo:
    """What a server says of itself once it answers.

    Attributes:
        url: where it answers, without a path (a wildcard address is shown as the loopback's).
        model_name: the name that clients use.
        max_model_len: most tokens of a request, prompt and output together.
        engine: the engine; its ``info`` tells the dtype, the threads, the KV cache and the memory.
    """

    url: str
    model_name: str
    max_model_len: int
    engine: AsyncEngine


async def serve(
    engine_config: EngineConfig,
    server_config: ServerConfig,
    on_ready: Callable[[ReadyInfo], None],
    *,
    load_progress: LoadProgressCallback | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then let running requests finish and return. A second signal ends it at once.

    Args:
        engine_config: of the engine to start.
        server_config: address, limits and keys.
        on_ready: called once, when requests are answered.
        load_progress: called with tensors read so far and how many there are, while the model loads.

    Raises:
        ConfigError: the address is taken or unusable; found out before the model is loaded.
        ParhelionError: the engine cannot start.
    """
    allow_open_files()
    with bind(server_config.host, server_config.port) as listener, StopSignals.handled() as signals:
        engine = await _start_engine(engine_config, load_progress, signals)
        if engine is None:
            return
        name = server_config.served_model_name or engine.model_name

        def announce(url: str) -> None:
            on_ready(ReadyInfo(url, name, engine.max_model_len, engine))

        try:
            await serve_engine(engine, server_config, listener, announce, signals)
        finally:
            await engine.shutdown()


def run(
    engine_config: EngineConfig,
    server_config: ServerConfig,
    on_ready: Callable[[ReadyInfo], None],
    *,
    load_progress: LoadProgressCallback | None = None,
) -> None:
    """``serve`` on an event loop of its own: uvloop's where it is installed. The process has nothing else to do."""

    def announce(info: ReadyInfo) -> None:
        keep_for_good(collect=False)
        on_ready(info)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(engine_config, server_config, announce, load_progress=load_progress))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """None stands for asyncio's own loop."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _start_engine(
    config: EngineConfig, load_progress: LoadProgressCallback | None, signals: StopSignals
) -> AsyncEngine | None:
    """The started engine; None if a signal came first."""
    from parhelion.engine.async_engine import AsyncEngine

    starting = asyncio.create_task(AsyncEngine.from_config(config, load_progress=load_progress))
    try:
        await _first_done(starting, signals.stop)
        return await starting if starting.done() else None
    finally:
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)


async def serve_engine(
    engine: EngineClient,
    config: ServerConfig,
    listener: socket.socket,
    on_ready: Callable[[str], None],
    signals: StopSignals,
) -> None:
    """As ``serve``, with an engine that runs already (and that the caller ends), a bound socket, and the signals.

    ``on_ready`` is told the URL.
    """
    context = build_context(engine, config)
    listen(listener, config)
    server = _Server(
        uvicorn.Config(
            create_application(context),
            access_log=False,
            log_config=None,
            log_level=logging.WARNING,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=_CLOSE_S,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    logging_stats = asyncio.create_task(log_stats(engine))
    try:
        await _wait_started(server, serving)
        on_ready(url_of(listener))
        await _first_done(serving, signals.stop)
        await _drain(context.admission, config.drain_timeout_s, signals)
    finally:
        server.should_exit = True
        server.force_exit = signals.stop_now.is_set()
        logging_stats.cancel()
        await asyncio.gather(logging_stats, return_exceptions=True)
        await serving


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: after a drain it would raise the signal again and spoil the status."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class StopSignals:
    """The first SIGTERM or SIGINT sets ``stop``, the next one ``stop_now``."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.stop_now = asyncio.Event()

    @classmethod
    @contextmanager
    def handled(cls) -> Iterator[StopSignals]:
        """Handlers in place while the block runs; needs the main thread's event loop."""
        signals = cls()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, signals.note)
        try:
            yield signals
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def note(self) -> None:
        """A signal has come."""
        (self.stop_now if self.stop.is_set() else self.stop).set()


async def _wait_started(server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if serving.done():
        await serving
        raise ConfigError("the HTTP server ended before it was ready; its log says why")


async def _drain(admission: Admission, timeout_s: float, signals: StopSignals) -> None:
    """Refuse what is new (the port stays open, so that a balancer sees 503) and let what runs finish."""
    admission.draining = True
    logger.info("shutting down: %d requests get %g s to finish", admission.active, timeout_s)
    emptied = asyncio.create_task(admission.wait_empty(timeout_s))
    await _first_done(emptied, signals.stop_now)
    emptied.cancel()
    if not admission.active:
        return
    logger.warning("ending %d requests that have not finished", admission.active)
    admission.abandon_all()
    if not signals.stop_now.is_set():
        await admission.wait_empty(_CLOSE_S)


async def _first_done(task: asyncio.Task[Any], event: asyncio.Event) -> None:
    """Wait for the end of the task or for the event; the task goes on if it was not the first."""
    waiter = asyncio.create_task(event.wait())
    try:
        await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
