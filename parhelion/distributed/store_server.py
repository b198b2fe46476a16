"""The store at which ranks of several hosts meet: ``python -m parhelion.distributed.store_server ADDRESS``.

It listens on one address, encrypts with CURVE, hears only who knows its secret, and passes on bytes that it does not
look at. It prints its ``StorePlace`` as a line of JSON, and ends when its standard input does. No torch here.
"""

from __future__ import annotations

import hmac
import os
import secrets
import signal
import sys
import time
from dataclasses import dataclass

import msgspec
import zmq

from parhelion.distributed.store_messages import (
    Add,
    Answer,
    Asked,
    Check,
    CompareSet,
    Count,
    Delete,
    Failed,
    Get,
    Missing,
    Number,
    Request,
    Set,
    StorePlace,
    Values,
)

WRONG_SECRET = "wrong secret: only ranks of the engine that started this store are heard"


class Table:
    """Keys and their values."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def missing(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        """Those that are not there."""
        return tuple(key for key in keys if key not in self._values)

    def answer(self, request: Request) -> Answer:
        """Do what is asked for; of a ``Get`` all keys must be there."""
        match request:
            case Set(key, value):
                self._values[key] = value
                return Values()
            case Add(key, amount):
                return self._add(key, amount)
            case CompareSet(key, expected, desired):
                if self._values.get(key, b"") != expected:
                    return Values((self._values.get(key, expected),))
                self._values[key] = desired
                return Values((desired,))
            case Get(keys, _):
                return Values(tuple(self._values[key] for key in keys))
            case Check(keys):
                return Number(int(not self.missing(keys)))
            case Delete(key):
                return Number(int(self._values.pop(key, None) is not None))
            case Count():
                return Number(len(self._values))

    def _add(self, key: str, amount: int) -> Answer:
        # As torch's own stores keep numbers, whose users read them with ``get``.
        before = self._values.get(key, b"0")
        try:
            total = int(before) + amount
        except ValueError:
            return Failed(f"{key!r} is no number to add {amount} to")
        self._values[key] = str(total).encode()
        return Number(total)


@dataclass(frozen=True)
class _Waiting:
    """Whoever waits for keys, until a time of the monotonic clock."""

    peer: bytes
    request: Get
    deadline: float


class StoreServer:
    """Listens from the beginning, and answers while it runs.

    Args:
        address: of the interface to listen on.

    Attributes:
        place: how it is reached.
    """

    def __init__(self, address: str) -> None:
        self._socket = zmq.Context().socket(zmq.ROUTER)
        public, secret = zmq.curve_keypair()
        self._socket.curve_server = True
        self._socket.curve_publickey, self._socket.curve_secretkey = public, secret
        port = self._socket.bind_to_random_port(f"tcp://{address}")
        self.place = StorePlace(f"tcp://{address}:{port}", public.decode(), secrets.token_hex(32), os.uname().nodename)
        self._table = Table()
        self._waiting: list[_Waiting] = []
        self._hosts: dict[int, str] = {}
        self._decoder = msgspec.msgpack.Decoder(Asked)
        self._encoder = msgspec.msgpack.Encoder()

    def run(self, until: int) -> None:
        """Answer until a file descriptor can be read, which at its end it can."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(until, zmq.POLLIN)
        while until not in (ready := dict(poller.poll(self._pause_ms()))):
            if self._socket in ready:
                self._hear(*self._socket.recv_multipart())
            self._answer_waiting()

    def _pause_ms(self) -> int | None:
        """Until the first of those who wait gives up."""
        first = min((each.deadline for each in self._waiting), default=float("inf"))
        return None if first == float("inf") else max(0, int(1000 * (first - time.monotonic())) + 1)

    def _hear(self, peer: bytes, *frames: bytes) -> None:
        try:
            asked = self._decoder.decode(frames[-1] if frames else b"")
        except msgspec.DecodeError as error:
            return self._say(peer, Failed(f"no request: {error}"))
        if not hmac.compare_digest(asked.secret.encode(), self.place.secret.encode()):
            return self._say(peer, Failed(WRONG_SECRET))
        self._hosts[asked.rank] = asked.host
        request = asked.request
        if isinstance(request, Get) and self._table.missing(request.keys):
            limit_s = float("inf") if request.timeout_s is None else request.timeout_s
            self._waiting.append(_Waiting(peer, request, time.monotonic() + limit_s))
            return None
        return self._say(peer, self._table.answer(request))

    def _answer_waiting(self) -> None:
        now, waiting = time.monotonic(), self._waiting
        self._waiting = []
        for each in waiting:
            missing = self._table.missing(each.request.keys)
            if not missing:
                self._say(each.peer, self._table.answer(each.request))
            elif each.deadline <= now:
                self._say(each.peer, Missing(missing, self._hosts))
            else:
                self._waiting.append(each)

    def _say(self, peer: bytes, answer: Answer) -> None:
        # Who has gone away in the meantime is not told.
        self._socket.send_multipart([peer, b"", self._encoder.encode(answer)])


def main() -> int:
    """Serve; returns the exit status."""
    # Whoever started it decides when it ends: a Ctrl-C in a terminal reaches all processes.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    server = StoreServer(sys.argv[1])
    sys.stdout.buffer.write(msgspec.json.encode(server.place) + b"\n")
    sys.stdout.buffer.flush()
    server.run(sys.stdin.fileno())
    return 0


if __name__ == "__main__":
    result = main()
    # What ranks have not taken is of no use to them any more.
    os._exit(result)
