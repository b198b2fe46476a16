"""The front end's end of the road to an engine: in another process over ZeroMQ, or in a thread of this one."""

from __future__ import annotations

import asyncio
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
import zmq
import zmq.asyncio

from parhelion.config import EngineConfig
from parhelion.engine.load import load_engine
from parhelion.engine.loop import failure, run_loop
from parhelion.engine.messages import EngineFailed, FromEngine, LoadProgress, Shutdown, ToEngine
from parhelion.engine.process import ProcessOptions

EXIT_CHECK_S = 0.5
"""How often a silent engine process is looked at."""

STOP_TIMEOUT_S = 10.0
"""How long an engine gets to stop by itself."""


class Connection(Protocol):
    """Messages to and from one engine."""

    def send(self, message: ToEngine) -> None:
        """Hand a message over; never blocks."""
        ...

    async def receive(self) -> FromEngine:
        """The next message; ``EngineFailed`` if the engine is gone."""
        ...

    async def close(self) -> None:
        """Stop the engine and wait for its end."""
        ...


class ProcessConnection:
    """An engine in a process of its own, which dies with this one."""

    def __init__(self, config: EngineConfig, model_path: Path, model_name: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="parhelion-")
        addresses = [f"ipc://{self._folder.name}/{name}" for name in ("requests", "outputs")]
        self._context = zmq.asyncio.Context()
        self._requests = self._context.socket(zmq.PUSH)
        self._requests.setsockopt(zmq.SNDHWM, 0)
        self._requests.bind(addresses[0])
        self._outputs = self._context.socket(zmq.PULL)
        self._outputs.setsockopt(zmq.RCVHWM, 0)
        self._outputs.bind(addresses[1])
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        options = ProcessOptions(config, str(model_path), model_name, addresses[0], addresses[1], os.getpid())
        self._process = subprocess.Popen(
            [sys.executable, "-m", "parhelion.engine.process"], stdin=subprocess.PIPE, env=_environment()
        )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(options))
        self._process.stdin.close()

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        # A PUSH socket without a high-water mark takes any message at once; its future needs no waiting for.
        self._requests.send(self._encoder.encode(message))

    async def receive(self) -> FromEngine:
        while not await self._outputs.poll(int(EXIT_CHECK_S * 1000)):
            if (status := self._process.poll()) is not None and not await self._outputs.poll(0):
                return EngineFailed("EngineDeadError", f"the engine process ended with status {status}")
        message: FromEngine = self._decoder.decode(await self._outputs.recv())
        return message

    async def close(self) -> None:
        if self._process.poll() is None:
            self.send(Shutdown())
            try:
                await asyncio.to_thread(self._process.wait, STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                await asyncio.to_thread(self._process.wait)
        self._context.destroy(linger=0)
        self._folder.cleanup()


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
        try:
            run_loop(loaded.core, self._channel)
        except Exception:
            return  # the loop has already told the front end


class _QueueChannel:
    """The engine's end, between two threads."""

    def __init__(self, incoming: queue.SimpleQueue[ToEngine], deliver: Callable[[FromEngine], None]) -> None:
        self._incoming = incoming
        self._deliver = deliver

    def receive(self, block: bool) -> ToEngine | None:
        try:
            return self._incoming.get(block)
        except queue.Empty:
            return None

    def send(self, message: FromEngine) -> None:
        self._deliver(message)


def _environment() -> dict[str, str]:
    """This process's environment, with OpenMP told not to spin: the server's process needs the same cores."""
    return {"OMP_WAIT_POLICY": "passive", **os.environ}
