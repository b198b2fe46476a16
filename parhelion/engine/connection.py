"""The front end's end of the road to an engine in a process of its own, over ZeroMQ. No torch here."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Protocol

import msgspec
import zmq
import zmq.asyncio

from parhelion.config import EngineConfig, child_environment
from parhelion.engine.heartbeats import LifeLine
from parhelion.engine.messages import EngineFailed, FromEngine, ProcessOptions, Shutdown, ToEngine

EXIT_CHECK_S = 0.5
"""How often a silent engine process is looked at."""

SPIN_BRIEFLY = {"GOMP_SPINCOUNT": "30000"}
"""How long OpenMP's threads spin before they sleep: enough to bridge the gap between two layers' loops. The default is
longer and would keep the server's process off the same cores."""

STOP_TIMEOUT_S = 10.0
"""How long an engine gets to stop by itself."""


def how_it_ended(status: int) -> str:
    """A process, by its exit status."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


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
    """An engine in a process of its own, which dies with this one.

    Args:
        config: all options.
        model_path: a folder or a ``.gguf`` file.
        model_name: for people and for the API.
        replica: which of ``config.dp`` it is.
    """

    def __init__(self, config: EngineConfig, model_path: Path, model_name: str, replica: int = 0) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="parhelion-")
        addresses = [f"ipc://{self._folder.name}/{name}" for name in ("requests", "outputs", "life")]
        self._context = zmq.asyncio.Context()
        self._requests = self._context.socket(zmq.PUSH)
        self._requests.setsockopt(zmq.SNDHWM, 0)
        self._requests.bind(addresses[0])
        self._outputs = self._context.socket(zmq.PULL)
        self._outputs.setsockopt(zmq.RCVHWM, 0)
        self._outputs.bind(addresses[1])
        # Who is silent is looked for between two messages, without waiting.
        self._life_context = zmq.Context()
        self._silence_s = config.heartbeat_timeout_s
        self._life = LifeLine(self._life_context, addresses[2], self._silence_s)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        requests, outputs, life = addresses
        options = ProcessOptions(config, str(model_path), model_name, requests, outputs, life, os.getpid(), replica)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "parhelion.engine.process"],
            stdin=subprocess.PIPE,
            env=child_environment(SPIN_BRIEFLY),
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
                return EngineFailed("EngineDeadError", f"the engine's process {self.pid} {how_it_ended(status)}")
            if status is None and self._life.is_lost:
                # It would not hear that it shall stop.
                self._process.kill()
                how = f"hung: it gave no sign of life for {self._silence_s:g} s, and was killed"
                return EngineFailed("EngineDeadError", f"the engine's process {self.pid} {how}")
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
        self._life_context.destroy(linger=0)
        self._folder.cleanup()
