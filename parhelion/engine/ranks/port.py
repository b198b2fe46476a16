"""Rank 0's end of the road to the other ranks: one ZeroMQ socket, and who has proved to be which rank."""

from __future__ import annotations

import hmac
import secrets
import tempfile
import threading
import time

import msgspec
import zmq

from parhelion.distributed.interfaces import Interface
from parhelion.engine.heartbeats import LifeLine
from parhelion.engine.ranks.line import bind_line
from parhelion.engine.ranks.messages import FromRank, Hello, Refused, ToRank

_WRONG_SECRET = "wrong secret: only processes that this engine started may be its ranks"


class RankPort:
    """Hears only who knows the secret. Any thread may use it.

    On one host it listens in a folder that only this user can enter. For ranks on other hosts it listens on one network
    interface; what is said there is encrypted. Who falls silent is noticed.

    Args:
        interface: that ranks on other hosts reach; None: all are on this one.
        timeout_s: how long a rank may give no sign of life; 0: for ever.

    Attributes:
        address: of the socket.
        secret: random, of this start.
        server_key: by which ranks on other hosts know this end; empty without.
        hosts: of the ranks that have said hello.
    """

    def __init__(self, interface: Interface | None = None, timeout_s: float = 0.0) -> None:
        self._timeout_s = timeout_s
        self.secret = secrets.token_hex(32)
        self.server_key = ""
        self.hosts: dict[int, str] = {}
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._folder = tempfile.TemporaryDirectory(prefix="parhelion-ranks-") if interface is None else None
        self._line = None
        if self._folder is not None:
            self.address = f"ipc://{self._folder.name}/ranks"
            self._socket.bind(self.address)
        elif interface is not None:
            self._line = bind_line(self._socket, interface.address, timeout_s)
            self.address, self.server_key = self._line.address, self._line.server_key
        self._lives: dict[int, LifeLine] = {}
        self._peers: dict[bytes, int] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromRank)
        self._lock = threading.Lock()

    def life_address(self, rank: int) -> str:
        """Where a rank that is about to be started shall give signs of life; empty across hosts, where both ends ask
        for them on the road of their messages.
        """
        if self._folder is None:
            return ""
        address = f"ipc://{self._folder.name}/life-{rank}"
        with self._lock:
            self._lives[rank] = LifeLine(self._context, address, self._timeout_s)
        return address

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
                peer, frame = self._socket.recv_multipart(copy=False)
                rank = self._rank_of(peer.bytes, frame)
                if rank is None:
                    self._socket.send_multipart([peer.bytes, self._encoder.encode(Refused(_WRONG_SECRET))])
                    continue
                return rank, self._decoder.decode(frame.buffer)
        return None

    def lost(self) -> frozenset[int]:
        """The ranks whose connections have ended, or that have fallen silent."""
        with self._lock:
            if self._line is not None:
                return self._line.lost()
            return frozenset(rank for rank, life in self._lives.items() if life.is_lost)

    def _rank_of(self, peer: bytes, frame: zmq.Frame) -> int | None:
        """Who a message is of; None if it is no rank's."""
        if peer in self._peers:
            return self._peers[peer]
        try:
            message = self._decoder.decode(frame.buffer)
        except msgspec.DecodeError:
            return None
        if not isinstance(message, Hello) or not hmac.compare_digest(message.secret.encode(), self.secret.encode()):
            return None
        if message.rank in self.hosts:
            return None
        if self._line is not None:
            self._line.watch(frame, message.rank)
        self._peers[peer] = message.rank
        self.hosts[message.rank] = message.host
        return message.rank

    def close(self) -> None:
        """Close the socket; what is queued is sent within a second or never."""
        with self._lock:
            self._context.destroy(linger=1000)
            self.remove_folder()

    @property
    def folder(self) -> str | None:
        """Which only this user can enter, if it is for one host."""
        return self._folder.name if self._folder is not None else None

    def remove_folder(self) -> None:
        """Where the socket lies, if it is for one host."""
        if self._folder is not None:
            self._folder.cleanup()
