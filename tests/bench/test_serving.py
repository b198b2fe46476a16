"""The load generator against a server that is a few lines of asyncio."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import httpx
import pytest

from parhelion.bench.load_clients import LoadClients
from parhelion.bench.serving import (
    ClientShare,
    RequestRecord,
    ServingSettings,
    arrival_times,
    generate_load,
    send_request,
    summarize_load,
)
from parhelion.bench.workload import random_prompts
from parhelion.errors import ConfigError, ParhelionError

TOKENS = 4


def event(body: object) -> str:
    return f"data: {json.dumps(body)}\n\n"


class StreamingServer(httpx.AsyncBaseTransport):
    """Answers with a stream of TOKENS chunks; every third request may be refused."""

    def __init__(self, refuse: bool = False) -> None:
        self.bodies: list[dict[str, object]] = []
        self.now = self.most = 0
        self._numbers = itertools.count()
        self._refuse = refuse

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(json.loads(request.content))
        if self._refuse and next(self._numbers) % 3 == 0:
            return httpx.Response(429, json={"error": {"message": "too many"}})
        return httpx.Response(200, content=self._events())

    async def _events(self):
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(TOKENS):
            await asyncio.sleep(0.002)
            yield event({"choices": [{"text": "x"}]}).encode()
        yield event({"choices": [], "usage": {"completion_tokens": TOKENS}}).encode()
        yield b"data: [DONE]\n\n"
        self.now -= 1


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> StreamingServer:
    return serve_with(StreamingServer(), monkeypatch)


def serve_with(server: StreamingServer, monkeypatch: pytest.MonkeyPatch) -> StreamingServer:
    client = httpx.AsyncClient
    monkeypatch.setattr(
        "parhelion.bench.serving.httpx.AsyncClient",
        lambda **settings: client(base_url=settings["base_url"], headers=settings["headers"], transport=server),
    )
    return server


def test_every_request_is_sent_and_timed_within_the_concurrency(server: StreamingServer) -> None:
    settings = ServingSettings(num_requests=9, prompt_length=5, output_length=TOKENS, concurrency=3)
    done: list[int] = []
    records = asyncio.run(generate_load("http://x", "m", settings, "key", lambda count, _total: done.append(count)))
    assert [record.error for record in records] == [""] * 9
    assert all(record.output_tokens == TOKENS == len(record.chunks) for record in records)
    assert server.most <= 3
    assert done == list(range(1, 10))
    assert all(len(body["prompt"]) == 5 and body["stream"] and body["ignore_eos"] for body in server.bodies)
    figures = {m.quantity: m.summary for m in summarize_load(records, settings)}
    assert figures["TTFT"].median >= 2
    assert figures["ITL"].count == 9 * (TOKENS - 1)
    assert figures["failed requests"].median == 0
    assert figures["end to end"].median >= figures["TTFT"].median
    assert figures["generated tokens"].median == pytest.approx(TOKENS * figures["requests"].median)


class CountingServer(BaseHTTPRequestHandler):
    """Streams two tokens and counts what it was asked."""

    sent: ClassVar[list[int]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.sent.append(body["prompt"][0])
        usage = {"choices": [], "usage": {"completion_tokens": 2}}
        events = [{"choices": [{"text": "a"}]}, {"choices": [{"text": "b"}]}, usage]
        self.send_response(200)
        self.end_headers()
        # An event may come in pieces, and with the line ends of the other kind.
        self.wfile.write(b"data: " + json.dumps(events[0]).encode()[:9])
        self.wfile.flush()
        self.wfile.write(json.dumps(events[0]).encode()[9:] + b"\r\n\r\n")
        self.wfile.write(b"".join(event(each).encode() for each in events[1:]) + b"data: [DONE]\n\n")

    def log_message(self, *_: object) -> None:
        pass


def test_several_clients_share_the_requests_and_begin_together() -> None:
    settings = ServingSettings(num_requests=5, prompt_length=3, output_length=2, concurrency=3)
    with ThreadingHTTPServer(("127.0.0.1", 0), CountingServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with LoadClients(2) as clients:
            once = clients.run(f"http://127.0.0.1:{server.server_port}", "m", settings)
            CountingServer.sent.clear()
            load = clients.run(f"http://127.0.0.1:{server.server_port}", "m", settings)
        server.shutdown()
    assert len(once.records) == 5
    assert [record.error for record in load.records] == [""] * 5
    assert [(record.output_tokens, len(record.chunks)) for record in load.records] == [(2, 2)] * 5
    prompts = random_prompts(count=5, length=3, vocab_size=1000, seed=0)
    assert sorted(CountingServer.sent) == sorted(prompt["prompt_token_ids"][0] for prompt in prompts)
    assert load.busy > 0
    shares = [ClientShare(number, 2) for number in range(2)]
    assert [share.concurrency(settings) for share in shares] == [2, 1]


def test_refused_requests_are_counted_and_the_others_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    serve_with(StreamingServer(refuse=True), monkeypatch)
    settings = ServingSettings(num_requests=6, prompt_length=5, output_length=TOKENS)
    records = asyncio.run(generate_load("http://x", "m", settings))
    figures = {m.quantity: m.summary for m in summarize_load(records, settings)}
    assert figures["failed requests"].median == 2
    assert figures["TTFT"].count == 4
    assert any("status 429" in record.error and "too many" in record.error for record in records)


def test_a_run_in_which_nothing_succeeded_is_an_error_with_the_reason() -> None:
    records = [RequestRecord(error="status 503: gone")]
    with pytest.raises(ParhelionError, match=r"none of 1 requests succeeded.*503: gone"):
        summarize_load(records, ServingSettings(num_requests=1))


def test_an_unreachable_server_is_a_failed_request_not_a_crash() -> None:
    async def refused() -> RequestRecord:
        async with httpx.AsyncClient(base_url="http://127.0.0.1:1", trust_env=False) as client:
            return await send_request(client, "m", {"prompt_token_ids": [1]}, 1)

    assert "ConnectError" in asyncio.run(refused()).error


def test_goodput_counts_only_requests_that_keep_both_objectives() -> None:
    quick = RequestRecord(sent=0.0, chunks=[0.1, 0.2], ended=0.2, output_tokens=2)
    late_start = RequestRecord(sent=0.0, chunks=[0.9, 1.0], ended=1.0, output_tokens=2)
    slow = RequestRecord(sent=0.0, chunks=[0.1, 2.0], ended=2.0, output_tokens=2)
    settings = ServingSettings(num_requests=3, ttft_objective_ms=500, tpot_objective_ms=500)
    figures = {m.quantity: m.summary.median for m in summarize_load([quick, late_start, slow], settings)}
    assert figures["goodput"] == pytest.approx(1 / 2.0)
    assert figures["requests"] == pytest.approx(3 / 2.0)


def test_arrivals_are_poisson_of_the_given_rate_or_all_at_once() -> None:
    assert arrival_times(ServingSettings(num_requests=3)) == [0.0, 0.0, 0.0]
    times = arrival_times(ServingSettings(num_requests=4000, request_rate=20.0))
    assert times == sorted(times)
    # The mean gap of 4000 exponential ones lies within 5 standard errors (1/sqrt(4000) of it each).
    assert times[-1] / 3999 == pytest.approx(1 / 20, rel=5 / math.sqrt(4000))


def test_unusable_settings_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="concurrency is 0"):
        ServingSettings(concurrency=0)
    with pytest.raises(ConfigError, match="request_rate is 0"):
        ServingSettings(request_rate=0.0)
