"""A rank's end of the road to rank 0: what it is told and what it answers."""

from __future__ import annotations

import os
import threading
import traceback
from queue import SimpleQueue
from types import TracebackType
from typing import Protocol

import msgspec
import torch
import zmq

from parhelion.engine.heartbeats import answer_heartbeats
from parhelion.engine.loop import failure
from parhelion.engine.ranks.line import connect_line
from parhelion.engine.ranks.messages import FromRank, Leave, RankOptions, StepDone, ToRank
from parhelion.engine.ranks.placement import compute_on
from parhelion.engine.step_result import PendingStep


class Road(Protocol):
    """What steps come by."""

    def receive(self) -> ToRank:
        """The next message; waits for it."""
        ...

    def answer(self, step: int, pending: PendingStep) -> None:
        """Tell rank 0 what a step produced, behind those before it."""
        ...


class RankChannel:
    """A socket, which is one thread's at a time.

    Args:
        options: say where rank 0 is. Across hosts this process ends when the connection does, whatever it is doing.
    """

    def __init__(self, options: RankOptions) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        if options.server_key:
            monitor = connect_line(
                self._socket, options.address, options.server_key, options.config.heartbeat_timeout_s
            )
            threading.Thread(target=_end_with_connection, args=(monitor,), daemon=True).start()
        else:
            self._socket.connect(options.address)
            self._life = answer_heartbeats(self._context, options.life_address)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToRank)
        self._inbox, self._outbox = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._inbox.bind("inproc://passed-on")
        self._outbox.connect("inproc://passed-on")
        self._sending = threading.Lock()

    def send(self, message: FromRank) -> None:
        """Queue a message."""
        self._socket.send(self._encoder.encode(message))

    def answer(self, step: int, pending: PendingStep) -> None:
        """See ``Road``; waits for the step."""
        self.send(StepDone(step, pending.wait()))

    def receive(self) -> ToRank:
        """The next message; waits for it, and passes on meanwhile what other threads have sent."""
        poller = zmq.Poller()
        for each in (self._socket, self._inbox):
            poller.register(each, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._inbox in ready:
                encoded = self._inbox.recv()
                if not encoded:
                    return Leave()
                self._socket.send(encoded)
            elif self._socket in ready:
                message: ToRank = self._decoder.decode(self._socket.recv())
                return message

    def pass_on(self, message: FromRank | None) -> None:
        """Queue a message in another thread than the one that receives; None lets that one receive no more."""
        with self._sending:
            self._outbox.send(b"" if message is None else self._encoder.encode(message))

    def close(self) -> None:
        """Send what is queued, within two seconds, and close the socket."""
        self._context.destroy(linger=2000)


class Relay:
    """Receives and answers in threads of their own: rank 0 is told what a step produced as soon as the device has got
    there, and not when the next step has been handed over.

    Args:
        channel: which nobody else uses meanwhile.
        device: that the steps run on.
    """

    def __init__(self, channel: RankChannel, device: torch.device) -> None:
        self._channel = channel
        self._device = device
        self._messages: SimpleQueue[ToRank] = SimpleQueue()
        self._steps: SimpleQueue[tuple[int, PendingStep]] = SimpleQueue()
        self._receiver = threading.Thread(target=self._receive, name="receiver", daemon=True)
        self._answerer = threading.Thread(target=self._answer, name="answers", daemon=True)

    def __enter__(self) -> Relay:
        self._receiver.start()
        self._answerer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """The channel is the caller's again."""
        self._channel.pass_on(None)
        self._receiver.join()

    def receive(self) -> ToRank:
        """See ``Road``."""
        return self._messages.get()

    def answer(self, step: int, pending: PendingStep) -> None:
        """See ``Road``; waits for nothing."""
        self._steps.put((step, pending))

    def _receive(self) -> None:
        message: ToRank | None = None
        while not isinstance(message, Leave):
            message = self._channel.receive()
            self._messages.put(message)

    def _answer(self) -> None:
        # A thread that waits for another device than its own would open the latter as well.
        compute_on(self._device)
        while True:
            step, pending = self._steps.get()
            try:
                done = StepDone(step, pending.wait())
            except Exception as error:
                self._channel.pass_on(failure(error))
                traceback.print_exc()
                return
            try:
                self._channel.pass_on(done)
            except zmq.ZMQError:
                return  # closed, since this process ends


def _end_with_connection(monitor: zmq.Socket[bytes]) -> None:
    """End this process when its connection to rank 0 has ended or rank 0 has been silent for too long."""
    try:
        monitor.recv_multipart()
    except zmq.ZMQError:
        return  # closed, since this process ends by itself
    os._exit(1)
