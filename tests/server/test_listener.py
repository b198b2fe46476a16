"""The socket and its connections: clients that stop reading or sending, idle ones, and how many there may be."""

from __future__ import annotations

import json
import logging
import resource
import socket
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from parhelion.config import ServerConfig
from parhelion.server import listener, run

from .conftest import LiveServer, live_server
from .fake_engine import FakeEngine


def send(server: LiveServer, head: str, body: bytes = b"") -> socket.socket:
    """A connection on which this was sent; ``head`` lacks the empty line."""
    url = httpx.URL(server.url)
    connection = socket.create_connection((url.host, url.port))
    connection.sendall(head.encode() + b"\r\nHost: x\r\n\r\n" + body)
    return connection


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within a minute"
        time.sleep(0.05)


def test_a_client_that_reads_no_further_gives_its_place_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MAX_STALL_S", 1)
    engine = FakeEngine("word " * 5000, max_model_len=1 << 17)
    body = json.dumps({"prompt": "x", "max_tokens": 24_000, "stream": True, "logprobs": 20}).encode()
    with live_server(engine, ServerConfig(max_concurrent_requests=1)) as server:

        def answered() -> int:
            asked = {"prompt": "y", "max_tokens": 1}
            return httpx.post(f"{server.url}/v1/completions", json=asked, timeout=30).status_code

        with send(server, f"POST /v1/completions HTTP/1.1\r\nContent-Length: {len(body)}", body):
            until(lambda: engine.tokens_made > 0)
            assert answered() == 429
            until(lambda: answered() == 200)


def test_a_client_that_leaves_while_it_sends_is_no_failure_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with live_server(FakeEngine()) as server:
        send(server, "POST /v1/completions HTTP/1.1\r\nContent-Length: 1000", b'{"pro').close()
        until(lambda: any("/v1/completions 499 " in record.getMessage() for record in caplog.records))
        metrics = httpx.get(f"{server.url}/metrics").text
    assert "parhelion_request_errors_total{" not in metrics
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_an_idle_connection_stays_open_for_the_time_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.KEEP_ALIVE_S > 60  # what balancers keep theirs for
    monkeypatch.setattr(run, "KEEP_ALIVE_S", 1)
    with live_server(FakeEngine()) as server, send(server, "GET /version HTTP/1.1") as connection:
        connection.settimeout(4)  # uvicorn's own is 5
        received = []
        while piece := connection.recv(1 << 16):
            received.append(piece)
        assert received[0].startswith(b"HTTP/1.1 200")


@pytest.fixture
def file_limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_open_files_are_allowed_as_far_as_the_system_lets(file_limits: tuple[int, int]) -> None:
    _, hard = file_limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    listener.allow_open_files(2048)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (2048, hard)
    listener.allow_open_files(1500)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (2048, hard)
    if hard != resource.RLIM_INFINITY:
        listener.allow_open_files(hard + 1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
