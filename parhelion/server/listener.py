"""The socket on which a server listens, and what the system is to do about its clients."""

from __future__ import annotations

import resource
import socket

from parhelion.config import ServerConfig
from parhelion.errors import ConfigError

MAX_STALL_S = 120
"""Seconds after which a client that takes no byte of what is sent to it, or a machine that does not answer, is gone."""

OPEN_FILES = 1 << 16
_BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not listening yet; port 0 takes a free one.

    Raises:
        ConfigError: the port is taken or not allowed, or the host is no address of this machine.
    """
    if not 0 <= port < 1 << 16:
        raise ConfigError(
            f"port {port} is no port to listen on at {host!r}; ports run from 1 to 65535, and 0 takes a free one"
        )
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host {host!r} with port {port} is no address to listen on: {error}") from None
    family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _bind_error(host, port, error) from None
    listener.setblocking(False)
    return listener


def listen(listener: socket.socket, config: ServerConfig) -> None:
    """Let clients connect.

    Raises:
        ConfigError: the port is taken after all, for two sockets may be bound to one as long as neither listens.
    """
    end_stalled(listener, MAX_STALL_S)
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        raise _bind_error(config.host, config.port, error) from None


def end_stalled(listener: socket.socket, seconds: int) -> None:
    """Let connections to come end once their client has taken nothing, or has not been heard of, for so long.

    Else one that reads no further would hold its place among the requests, and its answer, for ever. One that reads
    slowly goes on. Where the system cannot see to it, nothing happens.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, seconds * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, seconds // 2))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, seconds // 8))


def allow_open_files(wanted: int = OPEN_FILES) -> None:
    """Raise this process's limit of open files to ``wanted``, or as far as the system lets it; a higher one stays.

    Each client takes one, and many systems begin with 1024, after which the next client is not let in.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _bind_error(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot listen on {host}:{port}: {error.strerror or error}. "
        "End what uses the port, or choose another with --port (0 takes a free one) or another address with --host"
    )


def url_of(listener: socket.socket) -> str:
    """Where it answers; a wildcard address is shown as the loopback's."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"
