"""The front end's end of the road to an engine in a thread of the same process, for tests and small tools."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from parhelion.config import EngineConfig
from parhelion.engine.connection import STOP_TIMEOUT_S
from parhelion.engine.load import load_engine
from parhelion.engine.loop import failure, run_loop
from parhelion.engine.messages import EngineFailed, FromEngine, LoadProgress, Shutdown, ToEngine
from parhelion.errors import EngineDeadError

CHECK_S = 1.0
"""How often an idle engine looks whether its ranks still live."""


class ThreadConnection:
    """An engine in a thread of this process, for tests and small tools."""

    def __init__(self, config: EngineConfig, model_path: Path, model_name: str) -> None:
        self._to_engine: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self._from_engine: asyncio.Queue[FromEngine] = asyncio.Queue()
        self._event_loop = asyncio.get_running_loop()
        self._channel = _QueueChannel(self._to_engine, self._deliver)
        self._thread = threading.Thread(
            target=self._run, args=(config, model_path, model_name), name="engine", daemon=True
        )
        self._thread.start()

    def send(self, message: ToEngine) -> None:
        self._to_engine.put(message)

    async def receive(self) -> FromEngine:
        return await self._from_engine.get()

    async def close(self) -> None:
        self.send(Shutdown())
        await asyncio.to_thread(self._thread.join, STOP_TIMEOUT_S)

    def _deliver(self, message: FromEngine) -> None:
        try:
            self._event_loop.call_soon_threadsafe(self._from_engine.put_nowait, message)
        except RuntimeError:
            pass  # the event loop is closed: nobody is left to read it

    def _run(self, config: EngineConfig, model_path: Path, model_name: str) -> None:
        try:
            loaded = load_engine(
                config, model_path, model_name, lambda done, total: self._deliver(LoadProgress(done, total))
            )
        except Exception as error:
            self._deliver(failure(error))
            return
        self._deliver(loaded.info)
        loaded.watch.end_by(lambda why: self._deliver(EngineFailed(EngineDeadError.__name__, why)))
        try:
            run_loop(loaded.core, self._channel)
        except Exception:
            return  # the loop has already told the front end


class _QueueChannel:
    """The engine's end, between two threads."""

    def __init__(self, incoming: queue.SimpleQueue[ToEngine], deliver: Callable[[FromEngine], None]) -> None:
        self._incoming = incoming
        self._deliver = deliver

    def receive(self, block: bool, check: Callable[[], None]) -> ToEngine | None:
        while True:
            try:
                return self._incoming.get(block, CHECK_S)
            except queue.Empty:
                if not block:
                    return None
            check()

    def send(self, message: FromEngine) -> None:
        self._deliver(message)
