"""The engine's own process: ``python -m parhelion.engine.process``, started by ``ProcessConnection``.

It reads its options as JSON from standard input, connects to the two sockets they name, and serves until it is told to
stop or its parent is gone. It never opens a port.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec
import psutil
import zmq

from parhelion.engine.heartbeats import answer_heartbeats
from parhelion.engine.load import load_engine
from parhelion.engine.loop import failure, run_loop
from parhelion.engine.messages import EngineFailed, EngineInfo, FromEngine, LoadProgress, ProcessOptions, ToEngine
from parhelion.engine.parent import end_with_parent, remove_what_is_left
from parhelion.engine.ranks.placement import compute_on, rank_device, replica_config
from parhelion.errors import EngineDeadError, ParhelionError
from parhelion.platform.garbage import keep_for_good

CHECK_MS = 1000
"""How often an idle engine looks whether its ranks still live."""


class SocketChannel:
    """MessagePack over a PULL and a PUSH socket."""

    def __init__(self, options: ProcessOptions) -> None:
        self._context = zmq.Context()
        self._requests = self._context.socket(zmq.PULL)
        self._requests.setsockopt(zmq.RCVHWM, 0)
        self._requests.connect(options.requests_address)
        self._outputs = self._context.socket(zmq.PUSH)
        self._outputs.setsockopt(zmq.SNDHWM, 0)
        self._outputs.setsockopt(zmq.LINGER, 2000)
        self._outputs.connect(options.outputs_address)
        self._life = answer_heartbeats(self._context, options.life_address)
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._encoder = msgspec.msgpack.Encoder()

    def receive(self, block: bool, check: Callable[[], None]) -> ToEngine | None:
        """The next message, or None (see ``Channel``). Where the front end is gone, this process ends by itself."""
        while not self._requests.poll(CHECK_MS if block else 0):
            if not block:
                return None
            check()
        message: ToEngine = self._decoder.decode(self._requests.recv())
        return message

    def send(self, message: FromEngine) -> None:
        """Queue a message for the front end."""
        self._outputs.send(self._encoder.encode(message))

    def close(self) -> None:
        """Send what is queued and close the sockets."""
        self._context.destroy()


def end_late(options: ProcessOptions, why: str) -> NoReturn:
    """End this process from another thread than the one that serves, which may never come back."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as outputs:
        outputs.setsockopt(zmq.LINGER, 2000)
        outputs.connect(options.outputs_address)
        outputs.send(msgspec.msgpack.encode(EngineFailed(EngineDeadError.__name__, why)))
    sys.stderr.flush()
    os._exit(1)


def main() -> int:
    """Run the engine; returns the exit status."""
    # The front end decides when to stop: a Ctrl-C in a terminal reaches both processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    options = msgspec.json.decode(sys.stdin.buffer.read(), type=ProcessOptions)
    # It may have hours of work for a front end that is gone, or wait for a rank.
    end_with_parent(options.parent, options.requests_address)
    channel = SocketChannel(options)
    try:
        try:
            config = replica_config(options.config, options.replica)
            loaded = load_engine(
                config,
                Path(options.model_path),
                options.model_name,
                lambda done, total: channel.send(LoadProgress(done, total)),
                imports_s=time.time() - psutil.Process().create_time(),
            )
            # This thread waits for the device, which may not have been chosen before; the one that computes sees to
            # itself.
            compute_on(rank_device(config, 0))
        except Exception as error:
            channel.send(failure(error))
            raise
        loaded.watch.end_by(lambda why: end_late(options, why))
        info: EngineInfo = loaded.info
        keep_for_good()
        channel.send(info)
        run_loop(loaded.core, channel)
    except ParhelionError:
        return 1  # raised on purpose, and the front end has been told what to say
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        channel.close()
        remove_what_is_left(options.parent, options.requests_address)
    return 0


if __name__ == "__main__":
    result = main()
    # Nothing is left to do, and torch would take half a second to be torn down.
    sys.stderr.flush()
    os._exit(result)
