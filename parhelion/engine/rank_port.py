"""Rank 0's end of the road to the other ranks: one ZeroMQ socket, and who has proved to be which rank."""

from __future__ import annotations

import hmac
import secrets
import tempfile
import threading
import time

import msgspec
import zmq

from parhelion.engine.rank_messages import FromRank, Hello, Refused, ToRank

_WRONG_SECRET = "wrong secret: only processes that this engine started may be its ranks"


class RankPort:
    """Listens in a folder that only this user can enter, and hears only who knows the secret. Any thread may use it.

    Attributes:
        address: of the socket.
        secret: random, of this start.
        hosts: of the ranks that have said hello.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="parhelion-ranks-")
        self.address = f"ipc://{self._folder.name}/ranks"
        self.secret = secrets.token_hex(32)
        self.hosts: dict[int, str] = {}
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.bind(self.address)
        self._peers: dict[bytes, int] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromRank)
        self._lock = threading.Lock()

    def send(self, message: ToRank) -> None:
        """Hand a message to all ranks that have said hello; never blocks."""
        encoded = self._encoder.encode(message)
        with self._lock:
            for peer in self._peers:
                self._socket.send_multipart([peer, encoded])

    def receive(self, timeout_s: float) -> tuple[int, FromRank] | None:
        """The next message and the rank it is of; None if none comes in time. Strangers are refused."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while self._socket.poll(max(0, int(1000 * (deadline - time.monotonic())))):
                peer, encoded = self._socket.recv_multipart()
                rank = self._rank_of(peer, encoded)
                if rank is None:
                    self._socket.send_multipart([peer, self._encoder.encode(Refused(_WRONG_SECRET))])
                    continue
                return rank, self._decoder.decode(encoded)
        return None

    def _rank_of(self, peer: bytes, encoded: bytes) -> int | None:
        """Who a message is of; None if it is no rank's."""
        if peer in self._peers:
            return self._peers[peer]
        try:
            message = self._decoder.decode(encoded)
        except msgspec.DecodeError:
            return None
        if not isinstance(message, Hello) or not hmac.compare_digest(message.secret.encode(), self.secret.encode()):
            return None
        if message.rank in self.hosts:
            return None
        self._peers[peer] = message.rank
        self.hosts[message.rank] = message.host
        return message.rank

    def close(self) -> None:
        """Close the socket; what is queued is sent within a second or never."""
        with self._lock:
            self._context.destroy(linger=1000)
            self._folder.cleanup()
