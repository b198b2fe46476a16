"""The road between ranks of several hosts: ZeroMQ over TCP, encrypted with CURVE, with heartbeats at both ends.

A host that is cut off, of which no packet says that it is gone, is noticed ``heartbeat_timeout_s`` after its last sign
of life at the latest.
"""

from __future__ import annotations

import zmq
from zmq.utils.monitor import recv_monitor_message

from parhelion.engine.heartbeats import ask_for_heartbeats
from parhelion.errors import ConfigError


class BoundLine:
    """Rank 0's end.

    Attributes:
        address: that was bound.
        server_key: that ranks must know to be heard at all, and to know whom they talk to; printable.
    """

    def __init__(self, address: str, server_key: str, monitor: zmq.Socket[bytes]) -> None:
        self.address = address
        self.server_key = server_key
        self._monitor = monitor
        self._ranks: dict[int, int] = {}
        self._lost: set[int] = set()

    def watch(self, frame: zmq.Frame, rank: int) -> None:
        """The connection that this frame came through is that rank's."""
        # Of connections that ended before: their descriptors may be taken again.
        self.lost()
        descriptor = frame.get(zmq.SRCFD)
        assert isinstance(descriptor, int)
        self._ranks[descriptor] = rank

    def lost(self) -> frozenset[int]:
        """The ranks whose connections have ended or given no sign of life."""
        while self._monitor.poll(0):
            rank = self._ranks.pop(int(recv_monitor_message(self._monitor)["value"]), None)
            if rank is not None:
                self._lost.add(rank)
        return frozenset(self._lost)


def bind_line(socket: zmq.Socket[bytes], address: str, timeout_s: float) -> BoundLine:
    """Let a socket listen on a free port of this address, with a key made for it.

    Args:
        socket: rank 0's.
        address: of the interface.
        timeout_s: how long ranks may give no sign of life.

    Raises:
        ConfigError: this ZeroMQ cannot encrypt.
    """
    if not zmq.has("curve"):
        raise ConfigError("this pyzmq's libzmq was built without CURVE, which ranks on several machines need")
    public, secret = zmq.curve_keypair()
    socket.curve_server = True
    socket.curve_publickey, socket.curve_secretkey = public, secret
    monitor = ask_for_heartbeats(socket, timeout_s)
    port = socket.bind_to_random_port(f"tcp://{address}")
    return BoundLine(f"tcp://{address}:{port}", public.decode(), monitor)


def connect_line(socket: zmq.Socket[bytes], address: str, server_key: str, timeout_s: float) -> zmq.Socket[bytes]:
    """Connect a rank's socket; what is returned can be read once the connection has ended or rank 0 is silent."""
    socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
    socket.curve_serverkey = server_key.encode()
    monitor = ask_for_heartbeats(socket, timeout_s)
    socket.connect(address)
    return monitor
