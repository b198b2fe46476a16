"""Ranks on several hosts: what is said is encrypted, strangers are not heard, and who falls silent is noticed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
import zmq

from parhelion.distributed.interfaces import interface_at, interface_named, loopback
from parhelion.engine.ranks.line import connect_line
from parhelion.engine.ranks.messages import FromRank, Hello, Join, Loaded, Refused, ToRank
from parhelion.engine.ranks.port import RankPort
from parhelion.errors import ConfigError

TIMEOUT_S = 0.9


class Rank:
    """A rank's end, or a stranger's."""

    def __init__(self, address: str, server_key: str | None) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.monitor = None
        if server_key is None:
            self.socket.connect(address)
        else:
            self.monitor = connect_line(self.socket, address, server_key, TIMEOUT_S)

    def send(self, message: FromRank) -> None:
        self.socket.send(msgspec.msgpack.encode(message))

    def receive(self) -> ToRank:
        assert self.socket.poll(2000)
        message: ToRank = msgspec.msgpack.decode(self.socket.recv(), type=ToRank)
        return message

    def close(self) -> None:
        self._context.destroy(linger=0)


class Cable:
    """Carries bytes between a rank and rank 0, keeps them, and can be cut so that both ends wait in vain."""

    def __init__(self, address: str) -> None:
        host, port = address.removeprefix("tcp://").split(":")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._other = (host, int(port))
        self._ends: list[socket.socket] = []
        self.carried = bytearray()
        self.is_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(self._other)
        self._ends += [near, far]
        for source, target in ((near, far), (far, near)):
            threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(4096):
                self.carried += data
                if not self.is_cut:
                    target.sendall(data)
        except OSError:
            return

    def close(self) -> None:
        for each in (self._listener, *self._ends):
            each.close()


@pytest.fixture
def port() -> Iterator[RankPort]:
    opened = RankPort(loopback(), TIMEOUT_S)
    yield opened
    opened.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., Rank]]:
    opened: list[Rank] = []

    def make(address: str, server_key: str | None) -> Rank:
        opened.append(Rank(address, server_key))
        return opened[-1]

    yield make
    for rank in opened:
        rank.close()


def until_lost(port: RankPort, seconds: float = 30.0) -> frozenset[int]:
    deadline = time.monotonic() + seconds
    while not (lost := port.lost()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return lost


def test_it_listens_on_one_address_and_hears_who_has_the_key_and_the_secret(
    port: RankPort, connect: Callable[..., Rank]
) -> None:
    assert port.address.startswith("tcp://127.0.0.1:")
    other_key = zmq.curve_keypair()[0].decode()
    for stranger in (connect(port.address, None), connect(port.address, other_key)):
        stranger.send(Hello(1, port.secret, "elsewhere"))
    assert port.receive(0.3) is None
    guesser = connect(port.address, port.server_key)
    guesser.send(Hello(1, "guessed", "elsewhere"))
    assert port.receive(0.3) is None
    assert isinstance(guesser.receive(), Refused)
    rank = connect(port.address, port.server_key)
    rank.send(Hello(1, port.secret, "there"))
    assert port.receive(30.0) == (1, Hello(1, port.secret, "there"))
    port.send(Join("/a/file"))
    assert rank.receive() == Join("/a/file")
    guesser.close()
    time.sleep(0.2)
    assert port.lost() == frozenset(), "a stranger's end is nobody's"
    assert port.hosts == {1: "there"}


def test_nobody_reads_along(port: RankPort, connect: Callable[..., Rank]) -> None:
    cable = Cable(port.address)
    rank = connect(cable.address, port.server_key)
    rank.send(Hello(1, port.secret, "a-host-by-name"))
    assert port.receive(30.0) is not None
    port.send(Join("a-path"))
    assert rank.receive() == Join("a-path")
    assert b"CURVE" in cable.carried
    for said in (port.secret, "a-host-by-name", "a-path"):
        assert said.encode() not in cable.carried
    cable.close()


def test_both_ends_notice_a_cut_of_which_nothing_tells(port: RankPort, connect: Callable[..., Rank]) -> None:
    cable = Cable(port.address)
    rank, other = connect(cable.address, port.server_key), connect(port.address, port.server_key)
    for number, each in ((1, rank), (2, other)):
        each.send(Hello(number, port.secret, "there"))
        assert port.receive(30.0) is not None
    assert rank.monitor is not None
    assert other.monitor is not None
    assert not rank.monitor.poll(1200), "who answers is not lost"
    assert port.lost() == frozenset()
    cable.is_cut = True
    assert until_lost(port) == {1}
    assert rank.monitor.poll(5000)
    assert not other.monitor.poll(0)
    cable.close()


def test_an_end_is_noticed_at_once_and_what_was_said_before_is_heard(
    port: RankPort, connect: Callable[..., Rank]
) -> None:
    rank = connect(port.address, port.server_key)
    rank.send(Hello(1, port.secret, "there"))
    assert port.receive(30.0) is not None
    rank.send(Loaded(7, 8))
    rank._context.destroy(linger=1000)
    assert until_lost(port) == {1}
    assert port.receive(1.0) == (1, Loaded(7, 8))
    port.send(Join())


def test_interfaces_are_found_by_name_and_by_address() -> None:
    here = loopback()
    assert interface_at("127.0.0.1") == here
    assert interface_named(here.name) == here
    with pytest.raises(ConfigError, match=rf"no network interface 'none7' .* {here.name} \(127.0.0.1\)"):
        interface_named("none7")
    with pytest.raises(ConfigError, match=r"no network interface has the address 203.0.113.1; there are"):
        interface_at("203.0.113.1")
