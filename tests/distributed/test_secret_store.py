"""The store at which ranks of several hosts meet: what torch asks of one, who is heard, and what ends a wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import msgspec
import psutil
import pytest
import torch.distributed as dist
import zmq

from parhelion.distributed.interfaces import loopback
from parhelion.distributed.secret_store import SecretStore
from parhelion.distributed.store_messages import Asked, Count, StorePlace
from parhelion.distributed.store_process import StoreProcess
from tests.processes import wait_for_end

TIMEOUT = timedelta(seconds=20)
SHORT = timedelta(seconds=0.3)
HOST = os.uname().nodename

Reach = Callable[..., SecretStore]


@pytest.fixture
def process() -> Iterator[StoreProcess]:
    started = StoreProcess(loopback())
    yield started
    started.close()
    assert started.status is not None


@pytest.fixture
def place(process: StoreProcess) -> StorePlace:
    return process.place()


@pytest.fixture
def reach(place: StorePlace) -> Iterator[Reach]:
    reached: list[SecretStore] = []

    def end(rank: int = 0, timeout: timedelta = TIMEOUT, answer_s: float = 20.0, **other: str) -> SecretStore:
        reached.append(SecretStore(msgspec.structs.replace(place, **other), rank, timeout, answer_s))
        return reached[-1]

    yield end
    for each in reached:
        each.close()


def test_it_does_what_torch_asks_of_a_store(reach: Reach) -> None:
    own, other = reach(0), reach(1)
    # In C++, which calls the store as process groups do.
    store, there = (dist.PrefixStore("a group", each) for each in (own, other))
    every_byte = bytes(range(256))
    own.set("bytes", every_byte)
    assert other.get("bytes") == every_byte
    store.set("text", "of a group")
    assert there.get("text") == b"of a group"
    assert not own.check(["text"]), "another group's"
    assert there.check(["text"])
    assert not there.check(["text", "more"])
    assert [store.add("turn", 2), there.add("turn", 3), there.get("turn")] == [2, 5, b"5"]
    assert there.compare_set("owner", "", "first") == b"first"
    assert store.compare_set("owner", "", "second") == b"first"
    assert store.compare_set("owner", "first", "third") == b"third"
    assert store.compare_set("nobody", "somebody", "else") == b"somebody"
    assert not there.check(["nobody"])
    assert there.num_keys() == own.num_keys() == 4
    assert store.delete_key("turn")
    assert not there.delete_key("turn")
    store.multi_set(["left", "right"], ["1", "2"])
    assert there.multi_get(["right", "left"]) == [b"2", b"1"]
    assert there.clone().get("left") == b"1"
    with pytest.raises(dist.DistStoreError, match="is no number to add 1 to"):
        there.add("text", 1)


def test_who_waits_for_a_key_keeps_nobody_waiting(reach: Reach) -> None:
    num_threads, num_turns = 8, 25
    ends = [dist.PrefixStore("turns", each) for each in (reach(0), reach(1))]

    def take_turns(thread: int) -> int:
        store = ends[thread % 2]
        store.wait(["begin"])
        for turn in range(num_turns):
            store.set(f"{thread} {turn}", str(turn))
            # Set by another thread, sooner or later.
            assert int(store.get(f"{(thread + 1) % num_threads} {turn}")) == turn
            store.add("sum", 1)
        return int(store.get("sum"))

    with ThreadPoolExecutor(num_threads) as threads:
        taking = [threads.submit(take_turns, thread) for thread in range(num_threads)]
        ends[0].set("begin", "")
        sums = [each.result(60) for each in taking]
    assert max(sums) == num_threads * num_turns


def test_only_who_has_the_key_and_the_secret_is_heard(process: StoreProcess, place: StorePlace, reach: Reach) -> None:
    assert place.address.startswith("tcp://127.0.0.1:")
    sockets = psutil.Process(process._process.pid).net_connections("tcp")
    assert {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
    guesser = reach(1, secret="guessed")
    with pytest.raises(dist.DistStoreError, match=f"rank 1 on {HOST}, at the ranks' store on .* wrong secret"):
        guesser.set("key", b"value")
    # As one that an earlier start at the same address had.
    other_key = reach(1, answer_s=0.3, server_key=zmq.curve_keypair()[0].decode())
    with pytest.raises(dist.DistStoreError, match=r"has had no answer for 0.3 s: .* or has another key"):
        other_key.set("key", b"value")
    with zmq.Context() as context, context.socket(zmq.REQ) as stranger:
        stranger.linger = 0
        stranger.connect(place.address)
        stranger.send(msgspec.msgpack.encode(Asked(place.secret, 1, "there", Count())))
        assert not stranger.poll(300)
    assert reach(0).num_keys() == 0


def test_what_is_no_request_harms_nobody(place: StorePlace, reach: Reach) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.curve_serverkey = place.server_key.encode()
        socket.connect(place.address)
        for nonsense in (b"", b"nonsense", msgspec.msgpack.encode({"secret": place.secret})):
            socket.send(nonsense)
            assert socket.poll(20000)
            assert b"no request" in b"".join(socket.recv_multipart())
    assert reach(0).num_keys() == 0


def test_a_key_that_nobody_sets_is_an_error_that_says_who_was_there(reach: Reach) -> None:
    store, other = reach(3, SHORT), reach(1)
    other.set("there", b"")
    for wait in (lambda: store.get("key"), lambda: other.wait(["there", "key"], SHORT)):
        with pytest.raises(dist.DistStoreError) as raised:
            wait()
    assert f"rank 1 on {HOST}" in str(raised.value)
    assert f"has waited 0.3 s for key; ranks seen there: 1 ({HOST}), 3 ({HOST})" in str(raised.value)
    store.set_timeout(TIMEOUT)
    threading.Timer(0.5, other.set, ("key", b"late")).start()
    assert store.get("key") == b"late", "torch may change how long a store waits"


def test_a_store_that_ends_answers_nobody(process: StoreProcess, reach: Reach) -> None:
    store = reach(0, SHORT, answer_s=0.3)
    store.set("key", b"value")
    process.kill()
    with pytest.raises(dist.DistStoreError, match=r"has had no answer for 0.6 s: it has ended"):
        store.get("key")


def test_who_lets_go_of_the_store_ends_requests_under_way(reach: Reach) -> None:
    store = reach(0)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(store.get, "key")
        time.sleep(0.2)
        store.close()
        for request in (waiting.result, store.num_keys):
            with pytest.raises(dist.DistStoreError, match="has let go of it"):
                request()


def test_it_answers_whatever_holds_up_whoever_started_it_and_ends_with_that() -> None:
    script = """
import ctypes
import sys
import msgspec
from parhelion.distributed.interfaces import loopback
from parhelion.distributed.store_process import StoreProcess
store = StoreProcess(loopback())
sys.stdout.buffer.write(msgspec.json.encode(store.place()) + b"\\n%d\\n" % store._process.pid)
sys.stdout.buffer.flush()
# With Python's lock, as torch holds it while ranks hand each other their symmetric memory.
ctypes.PyDLL(None).sleep(60)
"""
    starter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert starter.stdout is not None
    place = msgspec.json.decode(starter.stdout.readline(), type=StorePlace)
    process = psutil.Process(int(starter.stdout.readline()))
    store = SecretStore(place, 1, TIMEOUT)
    # Whoever ends all processes of a terminal leaves it to the one that started it.
    for each in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(each)
    store.set("key", b"value")
    assert store.get("key") == b"value"
    store.close()
    starter.kill()
    starter.wait()
    starter.stdout.close()
    wait_for_end([process], 10)
