"""Signs of life, for which ZeroMQ asks and which it answers in threads of its own.

So a process may compute, compile or wait for as long as it likes. One that is stopped, or whose machine is cut off,
does not answer, and nothing else would tell.
"""

from __future__ import annotations

import time

import zmq
from zmq.utils.monitor import recv_monitor_message

RETURN_S = 1.0
"""How long a process of this machine gets to connect again: where this one was stopped together with it, its answer was
late, but it is well."""

CONNECT_TIMEOUT_S = 120.0
"""How long a process may take to import what it needs and connect."""


def ask_for_heartbeats(
    socket: zmq.Socket[bytes], timeout_s: float, events: int = zmq.EVENT_DISCONNECTED
) -> zmq.Socket[bytes]:
    """Ask whoever is connected for signs of life; a connection without any ends after ``timeout_s`` at the latest.

    Args:
        socket: not bound or connected yet.
        timeout_s: 0: they are not asked.
        events: that are told.

    Returns:
        A socket that tells of those events.
    """
    interval_s = timeout_s / 4
    socket.setsockopt(zmq.HEARTBEAT_IVL, int(1000 * interval_s))
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(1000 * (timeout_s - interval_s)))
    return socket.get_monitor_socket(events)


class LifeLine:
    """Watches one process of this machine, over a connection on which nothing but signs of life goes. One caller at a
    time.

    Args:
        context: that the caller ends.
        address: that the process shall connect to, see ``answer_heartbeats``.
        timeout_s: how long it may give no sign of life; 0: for ever.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, timeout_s: float) -> None:
        self._socket = context.socket(zmq.PULL)
        events = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
        self._monitor = ask_for_heartbeats(self._socket, timeout_s, events)
        self._socket.bind(address)
        self._lost_at: float | None = time.monotonic() + CONNECT_TIMEOUT_S

    @property
    def is_lost(self) -> bool:
        """The process gives no sign of life, or has ended, or has never connected."""
        while self._monitor.poll(0):
            connected = recv_monitor_message(self._monitor)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
            self._lost_at = None if connected else time.monotonic() + RETURN_S
        return self._lost_at is not None and time.monotonic() > self._lost_at


def answer_heartbeats(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """Let this process give signs of life as long as the socket that is returned exists."""
    socket = context.socket(zmq.PUSH)
    socket.connect(address)
    return socket
